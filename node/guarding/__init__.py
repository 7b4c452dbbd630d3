"""What one peer may cost this node, what it is known for, and who is banned."""
