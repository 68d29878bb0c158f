"""What a process asks of its machine: how much of it the process may use, and that it never outlives who started it."""
