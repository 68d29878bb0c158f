"""A session at the coordinator, and where it is placed."""
