"""One thread: the tensors are small, and pytest-xdist runs the processes side by side."""

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own data sets must not be seen."""
    monkeypatch.delenv("METAOPT_DATA", raising=False)


def pytest_collection_finish() -> None:
    """What was imported stays, and the collector of garbage need not look at it again."""
    gc.collect()
    gc.freeze()
