"""YAML text -> a tree: mappings with string keys, lists and scalars.

Scalars follow the core schema of YAML 1.2, not PyYAML's 1.1: `1e-4` is a float, `480_000` an int, and `off`, `no` and
`2024-01-31` are strings, as `anchors.mode: off` needs.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from raydis.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema; a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own name)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked while composing: later, a merge key (<<) has already copied the other mapping's keys into this one.
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, key) is not key:
                again, before = key.start_mark.line + 1, first[key.value].start_mark.line + 1
                raise ConfigError(f"{self.name}: line {again}: duplicate key {key.value}, first given on line {before}")
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def load_yaml(text: str, name: str) -> Any:
    """What the text says; `name` is where it came from, the first word of an error.

    Raises:
        ConfigError: bad YAML, or a key given twice (with both lines).
    """
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{name}: {line}not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
