"""One contribution from private rows to the event that publishes it."""
