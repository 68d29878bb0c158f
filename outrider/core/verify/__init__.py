"""A session at the verifier: which draft tokens to score, how long to wait for them, what that decides."""
