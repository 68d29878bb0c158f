"""The live page: a generation as it comes, its guesses, and what became of them, for a browser."""
