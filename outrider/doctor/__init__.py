"""What a machine and an installation lack for Outrider: findings, each with what to do."""
