"""The KV cache: blocks of memory, prefix caching, and the slot of each session."""
