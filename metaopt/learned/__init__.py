"""Learned optimizers: the networks m1 and m2, and their use as a torch optimizer."""
