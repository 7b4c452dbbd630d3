"""Who may use which data for what, as a decision that anybody can repeat, and what may leave a node."""
