"""Section 5.2: train, tune and measure all of Figure 6."""
