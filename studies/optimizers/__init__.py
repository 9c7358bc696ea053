"""Section 5.1 and appendix G: standard optimizers with and without a teleport."""
