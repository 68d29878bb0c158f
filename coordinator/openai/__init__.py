"""The OpenAI-compatible door: requests and answers in the shapes of OpenAI's HTTP interface, by one request path."""
