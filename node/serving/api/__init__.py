"""The OpenAI-style HTTP API over the Engine port."""
