"""How each method is drawn: the same colour, dashes and marker in every picture and report."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

LIGHT = (
    "#1f2eb9",  # blue
    "#b63907",  # vermilion
    "#0d785f",  # green
    "#9159ef",  # violet
    "#12161d",  # black
    "#7d1462",  # plum
    "#b28016",  # ochre
    "#1b96ab",  # teal
)
"""Colours on a light page, which stay apart in red, green and blue-yellow colour blindness."""

DARK = (
    "#5192fb",
    "#e95730",
    "#8ffa8f",
    "#b371b6",
    "#eef5ff",
    "#ff89a5",
    "#c2c12b",
    "#20c8e9",
)
"""Colours on a dark page, in the same order."""

BACKGROUND, INK = "#f3f5f8", "#1a1f26"
"""Colours of pictures, which have no second version for a dark page."""

LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


class Style(NamedTuple):
    """The look of a method, as indices into the tables of this module.

    Attributes:
        colour: index of the colour.
        dash: index of the dashes.
        marker: index of the marker.
    """

    colour: int
    dash: int
    marker: int

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of matplotlib's ``plot`` for this look."""
        return {
            "color": LIGHT[self.colour],
            "linestyle": LINE_STYLES[self.dash],
            "marker": MARKERS[self.marker],
        }


STYLES = {
    "lstm_update_tele": Style(0, 0, 0),
    "lstm_update_tele_v1": Style(0, 1, 1),
    "lstm_whitened": Style(0, 3, 2),
    "lstm_update": Style(1, 0, 1),
    "lstm_lr_tele": Style(2, 0, 2),
    "lstm_layerwise": Style(3, 0, 3),
    "lstm_layerwise_v1": Style(3, 1, 3),
    "gd": Style(4, 0, 4),
    "gd_tele": Style(4, 1, 4),
    "sgd": Style(4, 3, 1),
    "momentum": Style(5, 0, 6),
    "momentum_tele": Style(5, 1, 6),
    "nesterov": Style(5, 2, 8),
    "adagrad": Style(6, 0, 7),
    "adagrad_tele": Style(6, 1, 7),
    "rmsprop": Style(6, 2, 9),
    "rmsprop_tele": Style(6, 3, 9),
    "adam": Style(7, 0, 5),
    "adam_tele": Style(7, 1, 5),
    "shampoo": Style(0, 2, 7),
    "lbfgs": Style(1, 2, 8),
    "levenberg_marquardt": Style(2, 2, 9),
    "lbfgs_wolfe": Style(1, 3, 8),
    "kfac": Style(3, 3, 6),
    "muon": Style(3, 2, 6),
    "soap": Style(7, 3, 3),
    "adamw": Style(7, 2, 5),
    "adamw_cosine": Style(2, 1, 5),
    "sgd_cosine": Style(4, 2, 1),
    "schedule_free": Style(5, 3, 0),
}
"""Of known methods: one colour a base optimizer, dashes where it teleports."""


def method_styles(names: Sequence[str]) -> list[Style]:
    """Choose how the methods of one picture look; no two of them look the same.

    A known method has its own look in every picture, whatever its rate (``adam@0.1`` is drawn as
    ``adam``). The look of another name, such as the path of a checkpoint, depends on the name
    alone, except that it takes a colour that no other method has, if there is one. If two would
    look the same, the later one gets other dashes and another marker.

    Args:
        names: of the methods, in the order of the legend; ``name@rate`` and paths are fine.

    Returns:
        One style for each name.
    """
    chosen: dict[int, Style] = {}
    known = [STYLES.get(name.partition("@")[0]) for name in names]
    for i, style in enumerate(known):
        if style is not None:
            chosen[i] = _free(style, list(chosen.values()))
    for i, name in enumerate(names):
        if i not in chosen:
            taken = list(chosen.values())
            chosen[i] = _free(_by_name(name, {style.colour for style in taken}), taken)
    return [chosen[i] for i in range(len(names))]


def _by_name(name: str, taken: set[int]) -> Style:
    """Return the style of a name that is in no table."""
    number = zlib.crc32(name.encode(errors="surrogatepass"))
    colours = [(number + k) % len(LIGHT) for k in range(len(LIGHT))]
    colour = next((c for c in colours if c not in taken), colours[0])
    return Style(colour, number // 8 % len(LINE_STYLES), number // 32 % len(MARKERS))


def _free(style: Style, taken: Sequence[Style]) -> Style:
    """Return the style or the next free one: other dashes and marker, then another colour."""
    dashes, markers = len(LINE_STYLES), len(MARKERS)
    for k in count():
        candidate = Style(
            (style.colour + k // (dashes * markers)) % len(LIGHT),
            (style.dash + k) % dashes,
            (style.marker + k + k // 20) % markers,
        )
        if candidate not in taken or k == len(LIGHT) * dashes * markers:
            break
    return candidate
