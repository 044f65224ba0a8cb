"""The type of a parsed but unchecked configuration: a tree of mappings with string keys, lists and scalars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

Tree = dict[str, Any]


def is_tree(value: object) -> TypeGuard[Tree]:
    """Return whether a value is a mapping. Its keys are strings, because `raydis.config.yamltext` accepts no others."""
    return isinstance(value, dict)


def flattened(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a tree with its dotted key. An empty mapping is a value."""
    for key, value in tree.items():
        if is_tree(value) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
