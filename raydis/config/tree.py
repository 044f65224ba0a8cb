"""The type of a parsed but unchecked configuration: a tree of mappings with string keys, lists and scalars."""

from __future__ import annotations

from typing import Any, TypeGuard

Tree = dict[str, Any]


def is_tree(value: object) -> TypeGuard[Tree]:
    """Return whether a value is a mapping. Its keys are strings, because `raydis.config.yamltext` accepts no others."""
    return isinstance(value, dict)
