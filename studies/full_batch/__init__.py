"""Real problems with all data in one batch: the learned optimizer beside tuned baselines."""
