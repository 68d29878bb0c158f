"""Faults, lies and nonsense, and what has to hold under them: `make chaos` runs it all for as long as one likes."""
