"""Reports of made-up runs, and a reader of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from script_cases import load

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.methods import BASELINES
from metaopt.evaluation.report import html_report
from metaopt.evaluation.rollout import Trajectory
from metaopt.evaluation.table import summarise

SCRIPT = Path(__file__).parents[1] / "scripts" / "screenshot.py"
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(2)>.safetensors",
    "{{ 7*7 }}{% raw %}&lt;<!--",
    "a\u202eb\u2028c]]>",
)
MANIFEST: dict[str, Any] = {
    "versions": {"python": "3.11.7", "metaopt": "9.8.7", "torch": "2.9.0", "numpy": None},
    "git_revision": "abc1234-dirty",
    "config": {"problem": {"hidden": 3, "loss": "half_squared"}, "steps": 0},
    "problem_seeds": [],
}


def run(name: str, losses: NDArray[np.float64], learned: bool = False) -> Result:
    """A method's run with these losses, ``(steps + 1, problems)``, and nothing teleported."""
    curve = torch.from_numpy(losses)
    nothing = torch.full_like(curve, torch.nan)
    return Result(
        replace(BASELINES["gd"], name=name, learned=learned),
        Trajectory(curve, curve, nothing, torch.zeros_like(curve, dtype=torch.bool), 0.001),
    )


def runs(names: Sequence[str], steps: int = 12, problems: int = 5) -> list[Result]:
    """Each falls at a rate of its own; the later ones are slower."""
    noise = np.exp(np.random.default_rng(0).normal(size=(steps + 1, problems)))
    fall = np.arange(steps + 1)[:, None]
    return [run(name, 1e5 * noise * 10 ** (-fall / (2 + i))) for i, name in enumerate(names)]


def report(results: Sequence[Result], title: str = "Loss", **changes: Any) -> str:
    """The page of these results."""
    steps, problems = results[0].losses.shape
    manifest = {
        **MANIFEST,
        "config": {**MANIFEST["config"], "steps": steps - 1},
        "problem_seeds": list(range(problems)),
        **changes,
    }
    return html_report(title, results, summarise(results), manifest).decode()


class Page(HTMLParser):
    """A page's tags with their attributes and the text in them; wrongly nested tags raise."""

    VOID = ("meta", "link", "input", "br", "hr", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, "a tag is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice"
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in self.VOID:
            self.open.append(len(self.tags) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self.open.pop()][0] == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.texts[place] += data

    def find(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        """(attributes, text) of all such tags; an attribute ``data_x`` is ``data-x``."""
        wanted = {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()}
        return [
            (found, text)
            for (name, found), text in zip(self.tags, self.texts, strict=True)
            if name == tag and wanted.items() <= found.items()
        ]

    @property
    def curves(self) -> list[tuple[str, str]]:
        """(classes, path) of each method's line in the chart; the legend has lines too."""
        groups = [found["class"] or "" for found, _ in self.find("g") if "class" in found]
        lines = [found["d"] or "" for found, _ in self.find("path", class_="line")]
        return list(zip((g for g in groups if "curve" in g), lines, strict=False))

    @property
    def data(self) -> Any:
        """The JSON that the script reads."""
        ((_, text),) = self.find("script", id="chart-data")
        return json.loads(text)


def screenshot_script() -> ModuleType:
    """``scripts/screenshot.py``."""
    return load(SCRIPT)
