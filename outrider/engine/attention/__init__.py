"""Attention backends: ragged tree attention by kernels for GPUs, session by session, and native."""
