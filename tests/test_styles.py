"""A method looks the same everywhere, and its colour can be told from the others'."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from metaopt.evaluation.methods import BASELINES, known_methods
from metaopt.evaluation.styles import (
    BACKGROUND,
    DARK,
    INK,
    LIGHT,
    LINE_STYLES,
    MARKERS,
    STYLES,
    Style,
    method_styles,
)

# Linear sRGB as people with red, green and blue-yellow blindness see it: Machado, Oliveira and
# Fernandes 2009, at full severity.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def linear(colour: str) -> NDArray[np.float64]:
    """Linear sRGB of ``#rrggbb``."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates in which distances are about those that people see (Ottosson 2020)."""
    to_cones = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    return np.asarray(to_lab @ np.cbrt(to_cones @ np.clip(rgb, 0, 1)))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2, from 1 to 21."""
    dark, light = sorted(float(np.dot((0.2126, 0.7152, 0.0722), linear(c))) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_are_told_apart_by_the_colour_blind(palette: tuple[str, ...], vision: str) -> None:
    seen = [oklab(VISIONS[vision] @ linear(colour)) for colour in palette]
    for one, other in combinations(range(len(seen)), 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.1, (palette[one], palette[other])


def test_lines_stand_out_from_the_page() -> None:
    assert len(LIGHT) == len(DARK)
    assert min(contrast(colour, page) for colour in LIGHT for page in (BACKGROUND, "#ffffff")) > 3
    assert min(contrast(colour, page) for colour in DARK for page in ("#10151b", "#1a2129")) > 4.5
    assert contrast(INK, BACKGROUND) > 7


def test_every_known_method_has_a_style_of_its_own_and_its_teleporting_form_the_colour() -> None:
    assert set(STYLES) == set(known_methods())
    assert len({(style.colour, style.dash) for style in STYLES.values()}) == len(STYLES)
    bases = [name.removesuffix("_tele") for name in BASELINES if name.endswith("_tele")]
    assert bases
    for base in bases:
        plain, teleporting = STYLES[base], STYLES[f"{base}_tele"]
        assert plain == teleporting._replace(dash=plain.dash)


def test_a_known_method_looks_the_same_in_every_picture_and_at_every_rate() -> None:
    alone = {name: method_styles([name])[0] for name in known_methods()}
    others = ["runs/a/best.safetensors", "mine", *reversed(known_methods()), "\udcff"]
    together = dict(zip(others, method_styles(others), strict=True))
    assert {name: together[name] for name in alone} == alone
    assert method_styles(["adam@0.3"]) == method_styles(["adam"])


def test_an_unknown_name_keeps_its_style_and_gives_way_to_known_ones() -> None:
    (alone,) = method_styles(["mine"])
    assert method_styles(["mine"]) == [alone]
    same_colour = next(name for name, style in STYLES.items() if style.colour == alone.colour)
    for names in (["mine", same_colour], [same_colour, "mine"]):
        styles = dict(zip(names, method_styles(names), strict=True))
        assert styles[same_colour] == STYLES[same_colour]
        assert styles["mine"].colour != alone.colour
        assert styles["mine"][1:] == alone[1:]


@pytest.mark.parametrize("names", [
    [f"method {i}" for i in range(300)], ["adam@0.1", "adam@0.2", "adam"] * 20, ["a"] * 45,
])  # fmt: skip
def test_no_two_look_the_same(names: list[str]) -> None:
    styles = method_styles(names)
    assert len(set(styles)) == len(names)
    for style in styles:
        assert style.colour < len(LIGHT)
        assert style.dash < len(LINE_STYLES)
        assert style.marker < len(MARKERS)


def test_more_than_all_looks_repeat() -> None:
    assert len(method_styles(["a"] * 321)) == 321


def test_a_style_is_what_matplotlib_takes() -> None:
    assert Style(1, 2, 3).line == {"color": LIGHT[1], "linestyle": "-.", "marker": "D"}
