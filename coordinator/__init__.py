"""The coordinator: owner of the canonical sequence, and the public face."""
