"""API keys: what they may ask for, how fast, and what is written down about it."""
