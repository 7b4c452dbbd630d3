"""Private rows at the node: curating, grants, permits to read, what may leave, erasure."""
