"""What a member contributes: rows, models, training, Fisher, updates, merging, evaluation. No network, no keys."""
