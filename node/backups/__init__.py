"""Copies of a whole node: made while it runs, checked, and put back."""
