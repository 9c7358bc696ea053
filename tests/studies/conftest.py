"""Everything in this folder is marked ``studies``: `pytest -m "not studies"` leaves it out."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the studies."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("studies")
