"""Data of the tests of networks that are no chain."""

import torch


def regression(samples=20, width=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, width, generator=generator), torch.randn(
        samples, 2, generator=generator
    )
