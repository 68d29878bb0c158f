"""Many sessions at once: loads, what becomes of them, and how modes compare under each."""
