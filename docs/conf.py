"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs runs/docs``.

The pages are the Markdown of this folder, the reference comes from the docstrings. Nothing is
fetched, neither while building nor by a reader's browser: formulas become MathML, fonts are the
reader's own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math import latex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, str(Path(__file__).parents[1]))

import metaopt

project = "metaopt"
author = "the metaopt authors"
copyright = "2026, the metaopt authors"
release = version = metaopt.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["examples"]
nitpicky = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the anchors that GitHub makes
nb_execution_mode = "off"  # notebooks are shown as they were saved

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"metaopt {release}"
html_math_renderer = "mathml"
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

CODE = re.compile(r"(``.*?``|:[a-z]+:`[^`]*`|(?<![\w*])\*\w[^*\n]*\*(?![\w*]))", re.DOTALL)
"""Literals, roles and emphasis, which stay as they are."""
ROW = re.compile(r"\s*\|(.*)\|\s*$")
RULE = re.compile(r"[\s|:-]+")
NAMED_FIELD = re.compile(r"Alias for field number \d+")


def from_markdown(
    app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    """Docstrings are plain text with a little Markdown; make reStructuredText of them.

    Tables become list tables. Outside of code, |x| is a norm and w* a minimiser, for which
    reStructuredText has other uses. An action also says when it is exact.
    """
    result: list[str] = []
    for line in lines:
        row = ROW.fullmatch(line)
        if row is None:
            result.append(line)
        elif not RULE.fullmatch(line):
            if not (result and result[-1].startswith("     - ")):
                result += [".. list-table::", "   :header-rows: 1", ""]
            cells = [cell.strip() for cell in row[1].split(" | ")]
            result += [f"   {'  ' if i else '* '}- {cell}" for i, cell in enumerate(cells)]
    parts = CODE.split("\n".join(result))
    parts[::2] = [re.sub(r"(?<=\w)\*", r"\\*", part).replace("|", r"\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")
    if what == "class" and isinstance(exact_when := vars(item).get("exact_when"), str):
        lines += [f"Exact when {exact_when}.", ""]


def no_type_of_data(
    app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    """Napoleon would take what stands before a colon in a first line for a type."""
    if what == "data":
        lines.insert(0, "")


def without_named_fields(
    app: Sphinx, what: str, name: str, item: object, skip: bool, options: object
) -> bool | None:
    """Fields of a named tuple have no docstring but one that says their number."""
    return True if NAMED_FIELD.fullmatch(getattr(item, "__doc__", None) or "") else None


def visit_math(self: HTML5Translator, node: nodes.Element) -> None:
    """A formula within a line."""
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_displayed_math(self: HTML5Translator, node: nodes.Element) -> None:
    """A formula on a line of its own."""
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """What sphinx calls."""
    app.connect("autodoc-process-docstring", from_markdown, priority=600)
    app.connect("autodoc-process-docstring", no_type_of_data, priority=400)
    app.connect("autodoc-skip-member", without_named_fields)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displayed_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
