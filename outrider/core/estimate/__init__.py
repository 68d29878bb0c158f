"""What a worker learns online: the time of its steps, and how often a draft token is accepted."""
