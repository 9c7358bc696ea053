"""A one-page, self-contained HTML report."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import Environment

from metaopt.evaluation.table import Line, cells, headings, interval

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
 :root { color-scheme: light dark; }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
        padding: 0 1rem; }
 .wide { overflow-x: auto; }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
 th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
          border-bottom: 1px solid #8886; }
 th:first-child, td:first-child { text-align: left; }
 img { max-width: 100%; background: #fff; }
</style>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
<img alt="Loss against step, one line a method, geometric mean over problems"
     src="data:image/png;base64,{{ picture }}">
<div class="wide"><table>
 <caption>Loss: geometric mean over problems at chosen steps, with its 95&nbsp;% bootstrap interval
 over problems. A method with a non-finite problem has diverged.</caption>
 <thead><tr>{% for heading in headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
 <tbody>{% for row in rows %}
 <tr>{% for cell, detail in row %}<td>{{ cell }}{% if detail
 %}<br><small>{{ detail }}</small>{% endif %}</td>{% endfor %}</tr>{% endfor %}
 </tbody>
</table></div>
<h2>How to read it</h2>
<p>Every method steps the same problems from the same start. The defect is the relative change of
the network's output in a teleportation, which should be 0; a refused teleportation leaves its
problem's weights alone. <code>manifest.json</code> beside this page says how to get the same
numbers again.</p>
</html>
"""


def html_report(
    title: str, subtitle: str, lines: Sequence[Line], steps: int, picture: bytes
) -> bytes:
    """The page; it needs no network and no other file."""
    page = Environment(autoescape=True).from_string(_PAGE)
    text: str = page.render(
        title=title,
        subtitle=subtitle,
        headings=headings(steps),
        rows=[
            list(zip(cells(line), ["", *map(interval, line.means)] + [""] * 7, strict=False))
            for line in lines
        ],
        picture=base64.b64encode(picture).decode(),
    )
    return text.encode()
