"""Measurements under load: their tests share one, and run in one process."""
