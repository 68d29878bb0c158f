"""Chat as pure text: the model's template makes a prompt of messages, and parsers tell apart what it answers."""
