"""Two profiles: "ci", the same examples each time, and "soak" (METAOPT_FUZZ=soak), many others."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("fuzz_cases")

from fuzz_cases import CAGE, LIMIT  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402

HERE = Path(__file__).parent
CACHE = tempfile.TemporaryDirectory()  # of hypothesis, removed at exit
set_hypothesis_home_dir(CACHE.name)
COMMON = {
    "database": None,  # nothing is left in the checkout
    "deadline": timedelta(seconds=LIMIT),
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),  # to explain takes a tracer
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("ci", derandomize=True, **COMMON)
settings.register_profile("soak", print_blob=True, **COMMON)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a ~ stands for is no folder of a user's."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Whatever --threads was tried."""
    yield
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A warning is no traceback: hostile numbers overflow, and libraries say so."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker("soak")
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases were run."""
    if CAGE.cases:
        terminalreporter.write_line(f"fuzz: {CAGE.cases} cases")
