"""Kernels for GPUs, in Triton, and how they are launched. No GPU has run them yet; see docs/decisions/0036."""
