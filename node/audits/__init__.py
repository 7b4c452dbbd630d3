"""Checking everything a directory holds, and proofs that strangers verify."""
