"""One request at a time: modes side by side, prompt by prompt."""
