"""The ragged batch engine: torch and transformers; no gRPC, no asyncio."""
