"""The schedulers of verifier and drafter, and their rules: admission, preemption, queue, prefill, batching delay."""
