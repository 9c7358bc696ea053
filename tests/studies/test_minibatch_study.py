"""The learned optimizer for ordinary networks against its baselines: the study, tiny."""

import numpy as np
import pytest
import torch
from data_cases import make_dataset
from torch.nn import functional

from studies.learned_teleportation import minibatches
from studies.learned_teleportation.minibatches import (
    FAMILIES,
    NAME,
    NETWORKS,
    Extent,
    image_losses,
    main,
)
from studies.learned_teleportation.training_pool import train_one

TINY = Extent(1, 2, (2, 4), 100, 10, 2, (1e-3, 1e-2), ("adam",))


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(100, 784, generator=generator), torch.arange(100) % 10


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_losses_are_those_of_a_plain_loop(make, pair):
    found = image_losses(make, lambda m: torch.optim.SGD(m.parameters(), 0.1), pair, 3, 12)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(3):
        for index in torch.randperm(100, generator=generator).split(20):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(pair[0][index]), pair[1][index])
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    np.testing.assert_array_equal(found, expected[:12])


def test_a_diverged_run_counts_as_infinite(pair):
    make = NETWORKS["784-16-10-10"]
    losses = image_losses(make, lambda m: torch.optim.SGD(m.parameters(), 1e30), pair, 0, 5)
    assert np.isinf(losses[-1])
    assert not np.isnan(losses).any()


def test_the_study_trains_measures_and_leaves_its_tables(tmp_path, monkeypatch, capsys):
    data = make_dataset(tmp_path, "mnist", train=150, test=20)
    monkeypatch.setattr(minibatches, "QUICK", TINY)

    def train_here(jobs, processes):
        for job in jobs:
            train_one(*job)

    monkeypatch.setattr(minibatches, "train_all", train_here)
    out = tmp_path / "out"
    main(["--quick", "--data-dir", str(data), "--out", str(out)])
    printed = capsys.readouterr().out
    families, images = (
        (out / "tables" / f"minibatch_{name}.md").read_text() for name in ("families", "images")
    )
    assert families in printed
    assert images in printed
    assert families.count("\n") == 2 + 2 * len(FAMILIES)  # Adam and one meta-seed
    assert images.count(f" {NAME} ") == len(NETWORKS)
    rates = [line.split("|")[2] for line in families.splitlines() if "adam at" in line]
    assert {rate.strip() for rate in rates} <= {"adam at 0.001", "adam at 0.01"}
    assert (out / "runs" / f"{NAME}-0" / "best.safetensors").exists()
