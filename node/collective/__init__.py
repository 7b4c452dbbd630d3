"""Being a member: the seat in a collective, its votes, the recomputed releases, the succession of keys."""
