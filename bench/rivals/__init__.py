"""What Outrider is compared with: other systems, their rules on our engine, and ablations."""
