"""Attention backends: ragged tree attention per session, paged, static and native."""
