"""Two checkouts side by side: what a change costs."""
