"""Pictures of loss against step, on a log axis, with bands; they can be read in grey too."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from numpy.typing import NDArray

from metaopt.errors import cut
from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.statistics import log_mean_bands
from metaopt.evaluation.styles import BACKGROUND, INK, method_styles


class Band(NamedTuple):
    """A curve with the range around it; where it is not finite, the picture has a gap.

    Attributes:
        label: the text in the legend.
        middle: the curve, ``(steps + 1,)``.
        low: the lower end of the range, ``(steps + 1,)``.
        high: the upper end of the range, ``(steps + 1,)``.
        thick: whether the line is drawn thicker, as for learned methods.
        method: the method whose colour and dashes are used; by default that of the label.
    """

    label: str
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    thick: bool = False
    method: str = ""


def loss_figure(results: Sequence[Result], title: str) -> bytes:
    """Draw the geometric mean of the losses over tasks for each method, with 95 % bootstrap bands.

    Learned methods are drawn thicker.

    Args:
        results: one for each method.
        title: the title of the picture.

    Returns:
        The content of a PNG file.
    """
    bands = [
        Band(result.method.name, *log_mean_bands(result.losses), result.method.learned)
        for result in results
    ]
    return band_figure(bands, title)


def band_figure(bands: Sequence[Band], title: str) -> bytes:
    """Draw curves with bands; lines differ in dashes and marker as well as in colour.

    A user's matplotlibrc has no effect.

    Args:
        bands: the curves.
        title: the title of the picture.

    Returns:
        The content of a PNG file.
    """
    with usual_style([band.label for band in bands]) as names:
        return _drawn(bands, names, title)


def _drawn(bands: Sequence[Band], names: Sequence[str], title: str) -> bytes:
    figure = Figure(figsize=(9, 5), layout="constrained", facecolor=BACKGROUND)
    axes = figure.subplots()
    axes.set_facecolor(BACKGROUND)
    handles = []
    styles = method_styles([band.method or band.label for band in bands])
    for i, (band, style) in enumerate(zip(bands, styles, strict=True)):
        steps = np.arange(len(band.middle))
        middle, low, high = (
            np.where(np.isfinite(curve), curve, np.nan)
            for curve in (band.middle, band.low, band.high)
        )
        (line,) = axes.plot(
            steps,
            middle,
            **style.line,
            markevery=(i % 7, max(1, len(steps) // 10)),
            markersize=4,
            linewidth=2.2 if band.thick else 1.2,
        )
        handles.append(line)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, geometric mean over problems")
    axes.set_title(title, fontsize=10, color=INK)
    axes.grid(True, which="major", alpha=0.3)
    # Names given here rather than as labels: a path may start with _ or look like TeX.
    legend = figure.legend(handles, names, fontsize=8, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


@contextmanager
def usual_style(labels: Sequence[str] = ()) -> Iterator[list[str]]:
    """Draw in matplotlib's own style inside this context, whatever a user's matplotlibrc says.

    It decorates functions too.

    Args:
        labels: texts that will be drawn, which may be of any script.

    Yields:
        The labels, short, all different, and without a character that no installed font has: an
        escape such as ``\\u5b57`` stands for it.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        usual = matplotlib.rcParams["font.sans-serif"][0]
        families, lacking = _families("".join(labels), usual)
        matplotlib.rcParams["font.family"] = [usual, *families]
        short = [
            cut("".join(_escape(c) if c in lacking else c for c in label), LONGEST_LABEL)
            for label in labels
        ]
        yield [
            f"{label} ({i + 1})" if short.count(label) > 1 else label
            for i, label in enumerate(short)
        ]


LONGEST_LABEL = 40  # characters; more would leave no room for the curves


def _families(text: str, usual: str) -> tuple[list[str], set[str]]:
    """Return installed fonts that have what the usual one lacks, and what none of them has."""
    lacking = {c for c in text if unicodedata.category(c)[0] == "C"}
    wanted = set(text) - lacking - _characters(findfont(usual))
    families: list[str] = []
    for font in sorted(fontManager.ttflist, key=lambda f: (f.style != "normal", f.name, f.fname)):
        if wanted and not font.name.startswith("Last Resort"):  # which has a box for everything
            found = wanted & _characters(font.fname)
            families += [font.name] if found else []
            wanted -= found
    return families, lacking | wanted


def _characters(path: str) -> set[str]:
    """Return the characters that a font has; none if it cannot be used."""
    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return set()
    return set(map(chr, font.get_charmap())) if font.scalable else set()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
