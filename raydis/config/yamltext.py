"""Parse YAML text into a tree of mappings with string keys, lists and scalars.

PyYAML parses the text. Its own constructors follow YAML 1.1, so this file reads the parsed nodes by the core schema of
YAML 1.2: `1e-4` is a float, `0o17` an int, and `off`, `no` and `2024-01-31` are strings, as `anchors.mode: off` needs.
Two deviations from the schema are deliberate: `480_000` is an int, and `010` stays a string, because it is 8 in YAML
1.1 and 10 in YAML 1.2. We do not use ruamel.yaml, which follows YAML 1.2, because it turns `2024-01-31` into a date,
obeys `%YAML 1.1`, and reports a duplicate key with the line of its mapping instead of that of the first key.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from raydis.errors import ConfigError

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

MAX_DEPTH = 100  # levels of nesting; the deepest key of a sweep file has six
MAX_VALUES = 100_000  # counted after all aliases are expanded, because aliases of aliases can grow without limit

_DIGITS = r"[0-9](?:_?[0-9])*"
_PLAIN = {
    name: re.compile(pattern)
    for name, pattern in {
        "null": r"|~|null|Null|NULL",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": rf"[-+]?(?:0|(?!0){_DIGITS})|0o[0-7]+|0x[0-9a-fA-F]+",
        "float": rf"[-+]?(?:(?:\.[0-9]+|{_DIGITS}\.[0-9]*)(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    }.items()
}
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class _Loader(yaml.BaseLoader):
    """PyYAML's parser with the plain scalars of the core schema: null, bool, int, float, and text otherwise."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is not yaml.ScalarNode:
            return f"{_TAG}seq" if kind is yaml.SequenceNode else f"{_TAG}map"
        if not implicit[0]:  # quoted
            return f"{_TAG}str"
        if value == "<<":
            return _MERGE
        return _TAG + next((name for name, pattern in _PLAIN.items() if pattern.fullmatch(value)), "str")


def load_yaml(text: str, name: str) -> Value:
    """Return the value in the text; None if the text is empty.

    Args:
        name: where the text came from; error messages start with it.

    Raises:
        ConfigError: with the line: text that is not YAML or has several documents, a key that is given twice (with both
            lines) or is not text, a tag of another type, or nesting and aliases beyond MAX_DEPTH and MAX_VALUES.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        # The context of a ComposerError is part of the sentence. Other errors' contexts only say what was being read.
        parts = [error.context, error.problem] if isinstance(error, ComposerError) else [error.problem]
        raise ConfigError(f"{name}: {line}not YAML: {', '.join(filter(None, parts))}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"U+{error.character:04X}"
        raise ConfigError(f"{name}: line {line}: not YAML: the character {found} is not allowed") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply: use at most {MAX_DEPTH} levels") from error
    try:
        return None if node is None else _Reader().read(node, 0)[0]
    except _Refused as error:
        raise ConfigError(f"{name}: {error}") from error


class _Refused(Exception):
    """A node cannot be part of a tree. The message starts with its line."""

    def __init__(self, node: yaml.Node, reason: str) -> None:
        super().__init__(f"line {_line(node)}: {reason}")


class _Reader:
    """Converts nodes to values. All aliases of a node share one value."""

    def __init__(self) -> None:
        self._open: set[int] = set()  # ids of the nodes that contain the current one
        self._done: dict[int, tuple[Value, int]] = {}  # by id of a node: its value, and the number of values in it

    def read(self, node: yaml.Node, depth: int) -> tuple[Value, int]:
        """Return the value of a node, and the number of values in it."""
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            raise _Refused(node, "an alias lies inside the value that it stands for: write the values out")
        if depth > MAX_DEPTH:
            raise _Refused(node, f"nested too deeply: use at most {MAX_DEPTH} levels")
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            value, size = self._mapping(node, depth)
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items = [self.read(item, depth + 1) for item in node.value]
            value, size = [item for item, _ in items], 1 + sum(count for _, count in items)
        elif isinstance(node, yaml.ScalarNode):
            value, size = _scalar(node), 1
        else:
            raise _unknown_tag(node)
        if size > MAX_VALUES:
            raise _Refused(node, f"more than {MAX_VALUES} values, counted with aliases: use fewer aliases")
        self._open.remove(id(node))
        self._done[id(node)] = value, size
        return value, size

    def _mapping(self, node: yaml.MappingNode, depth: int) -> tuple[Value, int]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        first: dict[str, int] = {}
        size = 1
        for key, below in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_MERGE, f"{_TAG}str"):
                found = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _Refused(key, f"found {found} as a key, expected text: put it in quotes")
            if key.value in first:
                raise _Refused(key, f"duplicate key {key.value}, first given on line {first[key.value]}")
            first[key.value] = _line(key)
            value, count = self.read(below, depth + 1)
            size += count
            if key.tag != _MERGE:
                own[key.value] = value
                continue
            for source in reversed(
                value if isinstance(value, list) else [value]
            ):  # the first mapping of a list takes precedence
                if not isinstance(source, dict):
                    raise _Refused(below, "the merge key << needs a mapping or a list of mappings")
                merged |= source
        return merged | own, size


def _scalar(node: yaml.ScalarNode) -> Value:
    text: str = node.value
    name = "str" if node.tag == _MERGE else node.tag.removeprefix(_TAG)
    if name == "str":
        return text
    if name not in _PLAIN:
        raise _unknown_tag(node)
    if not _PLAIN[name].fullmatch(text):  # only if the tag is explicit; plain text has matched already
        raise _Refused(node, f"{text!r} does not look like a !!{name}: remove the tag")
    try:
        match name:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0)
            case _:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:  # Python reads at most 4,300 digits
        raise _Refused(node, f"{text[:20]}... has too many digits for a number") from error


def _unknown_tag(node: yaml.Node) -> _Refused:
    return _Refused(node, f"the tag {node.tag.replace(_TAG, '!!')} is not known here: remove it")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
