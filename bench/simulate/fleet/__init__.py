"""Hundreds of workers and thousands of sessions on a virtual clock, with production's policies."""
