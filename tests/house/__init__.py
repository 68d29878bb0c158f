"""Rules of the house: layers, sizes, comments."""
