"""Section 5.2: train learned optimizers, tune baselines, and compare them (Figure 6)."""
