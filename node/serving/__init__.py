"""The models of this node behind an OpenAI-style API."""
