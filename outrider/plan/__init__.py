"""What a deployment would need and gain, by formulas and public figures: no device is asked."""
