"""Outrider: disaggregated, asynchronous speculative decoding as gRPC microservices."""

__version__ = "0.1.0"
PROTOCOL_VERSION = 4
