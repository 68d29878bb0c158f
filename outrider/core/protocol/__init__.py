"""What is agreed between peers: the line, the speculation tree, messages, bounds and errors."""
