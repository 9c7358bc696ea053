"""Config files: YAML whose lines mean what they look like.

An alias is refused, since a few lines with aliases can fill all memory. So are a key that is given
twice, of which YAML takes the last; ``010``, which is 8; ``1:30``, which is 90; and ``yes`` and
``off``, which are true and false.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from metaopt.errors import UserError, cut, shown
from metaopt.storage import user_path

MODE = "yaml that means what it looks like"
"""The ``parser_mode`` of every parser."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the slower one where libyaml is not
_SURPRISES = (
    ("tag:yaml.org,2002:int", r"[-+]?0[0-9_]+", "a number of base 8", "leave out its first 0"),
    ("tag:yaml.org,2002:(int|float)", r".*:.*", "a number of base 60", "quote it"),
    ("tag:yaml.org,2002:bool", r"(?i)yes|no|on|off", "true or false", "write that, or quote it"),
    ("tag:yaml.org,2002:merge", r".*", "a merge of keys", "write the keys out"),
)
"""Tags of scalars with what they look like, what they are, and what to do."""


def _load(text: str) -> Any:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
        raise UserError("expected a config without aliases, got a * that is one: write it out")
    _check(yaml.compose(text, _LOADER))
    return get_loader("yaml")(text)


def _check(node: yaml.Node | None) -> None:
    """Raise a UserError for what a reader would take for something else."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(
                    f"expected a config with each key once, got {shown(key)} {keys.count(key)} "
                    "times: leave out all but one"
                )
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                _check(part)
    if isinstance(node, yaml.ScalarNode):
        for tag, looks, what, advice in _SURPRISES:
            if re.fullmatch(tag, node.tag) and re.fullmatch(looks, node.value):
                raise UserError(
                    f"expected no surprise in a config, got {shown(node.value)} in line "
                    f"{node.start_mark.line + 1}, which is {what} in YAML: {advice}"
                )


set_loader(MODE, _load, exceptions=(yaml.YAMLError, UserError))


def read_config(source: str) -> tuple[dict[str, Any], str]:
    """Return the values of a config by key, and its text.

    Args:
        source: the path of a YAML file, "-" for stdin, or the text itself.

    Raises:
        UserError: if there is no such file, or it is no config.
    """
    path = user_path(source)
    try:
        inline = source != "-" and not path.exists()
    except OSError:  # a name that is too long
        inline = True
    name = "the --config" if inline else "stdin" if source == "-" else shown(source)
    try:
        text = source
        if not inline:
            data = sys.stdin.buffer.read() if source == "-" else path.read_bytes()
            text = data.decode("utf-8-sig")
        content = _load(text)
    except OSError as error:
        raise UserError(
            f"expected a config that can be read, got {name} ({error.strerror}): name a file"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"expected a config in UTF-8 text, got {name}: save it as that") from None
    except UserError as error:
        raise UserError(f"{error} ({name})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = cut(" ".join(str(error).split()), 120)
        raise UserError(
            f"expected a config in YAML, got {name}, which is none ({reason}): mend it"
        ) from None
    if inline and isinstance(content, str):
        raise UserError(
            f"expected a config file, got {shown(source)}, which does not exist: check the path"
        )
    if content is None:
        return {}, "{}"
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"expected a config of flags with their values, got {shown(content)} in {name}: write "
            "lines such as steps: 100"
        )
    return content, text
