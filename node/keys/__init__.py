"""The member's own keys: made, locked on disk, backed up."""
