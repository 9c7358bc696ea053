"""Searches that only studies use: the paper's own, and a control."""
