"""A session at the drafter: which nodes to expand, and when to send a draft window."""
