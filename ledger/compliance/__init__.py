"""Compliance: facts from verified feeds in an in-memory database, one SQL view for each rule, findings that people can read."""
