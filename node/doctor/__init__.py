"""`fishernet doctor`: what may be wrong with a node, its cause, and the command that cures it."""
