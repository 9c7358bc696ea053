"""Config files: YAML without aliases, since a few lines with aliases can fill all memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from metaopt.errors import UserError

MODE = "yaml without aliases"
"""The ``parser_mode`` of every parser."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the slower one where libyaml is not


def _load(text: str) -> Any:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
        raise UserError("expected a config without aliases, got a * that is one: write it out")
    return get_loader("yaml")(text)


set_loader(MODE, _load, exceptions=(yaml.YAMLError, UserError))


def read_config(path: str) -> dict[str, Any]:
    """Return the values of a config file by key; none if it cannot be read, as the parser says."""
    try:
        content = _load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
