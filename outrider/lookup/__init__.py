"""Look-ups in machine code: the n-gram tables of `outrider.core.propose`, answer by answer the same. No torch."""
