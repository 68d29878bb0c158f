"""The attacker's table: each way in that must be shut, tried on a real process or a real door."""
