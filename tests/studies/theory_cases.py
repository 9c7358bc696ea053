"""What the tests of the theory share."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def point(*values):
    return torch.tensor(values, dtype=torch.float64)


def check(outcome, *words):
    """The one check whose statement has all the words."""
    (found,) = [c for c in outcome.checks if all(word in c.statement for word in words)]
    return found
