"""Compiled forward passes: ahead of time, just in time, CUDA graphs, and small-M GEMM for linear layers."""
