"""What the services tell about themselves: traces, metrics and logs. Never prompts, never generated text."""
