"""The engine process: one base model, many adapters, one batch. Runs as a child of the node; torch lives here."""
