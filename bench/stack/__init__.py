"""The services that are measured, and their workers' logs of steps."""
