"""Measurements. Each is a command that prints what it measured, and on what machine; see bench/README.md."""
