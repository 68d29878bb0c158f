"""The scheduler's rules: queue, admission, chunked prefill and batching delay."""
