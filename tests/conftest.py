"""One thread: the tensors are small, and pytest-xdist runs the processes side by side."""

import gc
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from metaopt import extensions
from metaopt.tasks import RegressionFamily

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays, and the collector of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _installed_packages_are_read_once() -> Iterator[None]:
    """Not by each of the commands that are run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extensions, "entry_points", cache(extensions.entry_points))
        yield


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own data sets must not be seen."""
    monkeypatch.delenv("METAOPT_DATA", raising=False)


@pytest.fixture
def sampled(monkeypatch):
    """(width, seeds) of every batch of problems drawn."""
    drawn = []
    original = RegressionFamily.sample

    def sample(self, seeds):
        seeds = list(seeds)
        drawn.append((self.hidden, seeds))
        return original(self, seeds)

    monkeypatch.setattr(RegressionFamily, "sample", sample)
    return drawn
