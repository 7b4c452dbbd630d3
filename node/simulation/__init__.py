"""A whole collective in one process, under a fake network and a fake clock."""
