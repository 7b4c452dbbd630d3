"""The demonstration: real nodes on one machine, looked at from outside."""
