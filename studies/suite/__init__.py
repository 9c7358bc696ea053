"""Ten ordinary networks to judge optimizers by, beside baselines that are tuned for each task."""
