"""Searches for a teleport that only the studies use: the paper's own one, and a control."""
