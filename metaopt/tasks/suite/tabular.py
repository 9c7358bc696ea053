"""Tabular regression: how long a function of the standard library is, from counts of its syntax.

A row is one function of a module of the standard library. Its 32 numbers count the nodes of its
syntax tree by kind, its arguments, its nesting and its docstring; its two categories say where it
stands and how it is decorated. The target is the logarithm of the characters of its source without
the docstring. Names, comments and spaces are not in the numbers, so it cannot be said exactly.
Whole modules are held out. It is real data that every Python brings along: public tables would have
to be downloaded, and those in small packages have a few hundred rows.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.tasks.suite.base import Pair, PairTask, Parts
from metaopt.tasks.suite.text import Sources, sources, split_of

NODES = (
    "Assert", "Assign", "Attribute", "AugAssign", "BinOp", "BoolOp", "Break", "Call", "Compare",
    "Constant", "Dict", "Expr", "For", "If", "Import", "JoinedStr", "Lambda", "List", "ListComp",
    "Name", "Raise", "Return", "Subscript", "Try", "Tuple", "UnaryOp", "While", "With", "Yield",
)  # fmt: skip
"""Kinds of nodes that are counted."""

NUMBERS = len(NODES) + 3
PLACES = ("function", "method", "inner")
DECORATORS = ("none", "property", "staticmethod", "classmethod", "other")
LEAST_ROWS = 100

Function = ast.FunctionDef | ast.AsyncFunctionDef
Row = tuple[list[float], tuple[int, int], float]
"""Numbers, categories and target."""


def rows(text: str) -> Iterator[Row]:
    """Yield the rows of the functions of a module.

    Args:
        text: its source.
    """
    ends = [0]
    for line in text.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    for node, place in _functions(ast.parse(text), "function"):
        numbers, docstring = _numbers(node)
        length = ends[min(node.end_lineno or 0, len(ends) - 1)] - ends[node.lineno - 1] - docstring
        kinds = (PLACES.index(place), DECORATORS.index(_decorator(node)))
        yield numbers, kinds, math.log(max(length, 1))


def _functions(node: ast.AST, place: str) -> Iterator[tuple[Function, str]]:
    for child in ast.iter_child_nodes(node):
        inner = place
        if isinstance(child, Function):
            yield child, place
            inner = "inner"
        elif isinstance(child, ast.ClassDef):
            inner = "method"
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _functions(child, inner)


def _numbers(node: Function) -> tuple[list[float], int]:
    """Return log(1 + n) of all counts, and the characters of the docstring."""
    counts: Counter[str] = Counter()
    deepest, ahead = 0, [(child, 1) for child in node.body]
    docstring = len(ast.get_docstring(node, clean=False) or "")
    while ahead:
        inner, depth = ahead.pop()
        counts[type(inner).__name__] += 1
        deepest = max(deepest, depth)
        ahead += [(child, depth + 1) for child in ast.iter_child_nodes(inner)]  # type: ignore[misc]
    arguments = len(node.args.args) + len(node.args.kwonlyargs)
    found = [*(counts[kind] for kind in NODES), deepest, arguments, docstring]
    return [math.log1p(n) for n in found], docstring


def _decorator(node: Function) -> str:
    if not node.decorator_list:
        return "none"
    name = getattr(node.decorator_list[0], "id", "other")
    return name if name in DECORATORS else "other"


def table(texts: Sources) -> dict[str, Pair]:
    """Return the table of functions, numbers and targets standardized by the training rows.

    Args:
        texts: sources by the name of the module, which says the split.

    Returns:
        For each split ``(n, numbers + 2)``, categories last, and targets ``(n,)``.
    """
    found: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for name, text in texts.items():
        found[split_of(name)] += rows(text)
    parts = {}
    for split, own in found.items():
        numbers = torch.tensor([row[0] for row in own]).reshape(-1, NUMBERS)
        categories = torch.tensor([row[1] for row in own]).reshape(-1, 2)
        parts[split] = numbers, categories, torch.tensor([row[2] for row in own])
    numbers, _, targets = parts["train"]
    mean, std = numbers.mean(dim=0), numbers.std(dim=0).clamp(min=1e-3)
    return {
        split: (torch.cat(((x - mean) / std, kinds), dim=1), (y - targets.mean()) / targets.std())
        for split, (x, kinds, y) in parts.items()
    }


@cache
def functions_of_the_library() -> Parts:
    """Return the table of the functions of Python's standard library."""
    return table(sources())


class TabularNetwork(nn.Module):
    """Embeds each number by sines, and each category, before two hidden layers with SiLU.

    Source of the sines: Gorishniy et al., On Embeddings for Numerical Features (2022).

    Args:
        width: of the hidden layers.
        waves: sines and cosines of a number.
        embedded: numbers that stand for each number, and for each category.
    """

    def __init__(self, width: int = 128, waves: int = 4, embedded: int = 6) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(NUMBERS, waves))
        self.mix = nn.Parameter(torch.randn(NUMBERS, 2 * waves, embedded) / math.sqrt(2 * waves))
        self.place = nn.Embedding(len(PLACES), embedded)
        self.decorator = nn.Embedding(len(DECORATORS), embedded)
        self.body = nn.Sequential(
            nn.Linear((NUMBERS + 2) * embedded, width),
            nn.SiLU(),
            nn.LayerNorm(width),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardized target, ``(n,)``.

        Args:
            x: ``(n, numbers + 2)``, categories last.
        """
        angles = 2 * math.pi * x[:, :NUMBERS, None] * self.frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        numbers = torch.einsum("nfw,fwe->nfe", waves, self.mix).flatten(1)
        places = self.place(x[:, NUMBERS].long())
        decorators = self.decorator(x[:, NUMBERS + 1].long())
        out: Tensor = self.body(torch.cat((numbers, places, decorators), dim=1)).squeeze(-1)
        return out


class Tabular(PairTask):
    """A network of embedded numbers says how long a function is; batches of 128 rows."""

    steps: ClassVar[int] = 700

    def __init__(self) -> None:
        super().__init__(128)

    def parts(self) -> Parts:
        """Return the rows and targets of each split."""
        return functions_of_the_library()

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return TabularNetwork()

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the mean squared error, where the variance of the target is 1.

        Args:
            model: says a number a row.
            batch: rows and targets.
        """
        x, y = batch
        return functional.mse_loss(model(x), y)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return nothing: the loss says it all.

        Args:
            model: says a number a row.
            batch: rows and targets.
        """
        return {}
