"""Models divided over several ranks: real processes that talk by gloo on one machine."""
