"""The whole page of the report: templates, style and script in one file, sealed by a policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from metaopt.evaluation.evaluate import Result
from metaopt.evaluation.report.chart import draw
from metaopt.evaluation.report.columns import columns, table_rows
from metaopt.evaluation.report.facts import facts, lowest
from metaopt.evaluation.styles import DARK, LIGHT
from metaopt.evaluation.table import Line

STYLES = ("colours.css", "page.css", "chart.css", "table.css")
SCRIPTS = ("say.js", "sort.js", "chart.js")


def html_report(
    title: str, results: Sequence[Result], lines: Sequence[Line], manifest: Mapping[str, Any]
) -> bytes:
    """Return an HTML page that shows the results; it needs no network and no other file.

    Args:
        title: the title of the page.
        results: one for each method.
        lines: the lines of the table, one for each result.
        manifest: what ``manifest.json`` holds.

    Returns:
        The content of the file.
    """
    style = colours() + "".join(map(_file, STYLES))
    script = "".join(map(_file, SCRIPTS))
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        title=title,
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        facts=facts(manifest, results),
        lowest=lowest(lines),
        chart=draw(results),
        columns=columns(manifest["config"]["steps"], lines),
        rows=table_rows(results, lines),
    )
    return text.encode(errors="replace")  # a path may hold bytes that are no text


def colours() -> str:
    """Return a style sheet with the methods' colours, on a light and on a dark page.

    Each colour has a class of its own.
    """
    light, dark = (
        "".join(f"  --colour-{i}: {colour};\n" for i, colour in enumerate(palette))
        for palette in (LIGHT, DARK)
    )
    classes = "".join(
        f".colour-{i} {{ --colour: var(--colour-{i}); }}\n" for i in range(len(LIGHT))
    )
    return (
        f":root {{\n{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{\n:root {{\n{dark}}}\n}}\n{classes}"
    )


def policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style and this script, and fetches nothing.

    Args:
        style: the style sheet of the page.
        script: the script of the page.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("files", name).read_text(encoding="utf-8")
