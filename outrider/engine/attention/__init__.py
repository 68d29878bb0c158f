"""Attention backends: ragged tree attention by kernels for GPUs, static, paged, per session, and native."""
