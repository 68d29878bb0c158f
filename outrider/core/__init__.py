"""The decision core: pure, standard library only. No clock, no randomness, no asyncio, no logging."""
