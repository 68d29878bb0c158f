"""Kernels for GPUs, in Triton, what they are told of a step, and how they are launched. No GPU has run them yet."""
