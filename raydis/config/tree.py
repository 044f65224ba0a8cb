"""A tree is what YAML yields: mappings with string keys, lists and scalars."""

from __future__ import annotations

from typing import Any, TypeGuard

Tree = dict[str, Any]


def is_tree(value: object) -> TypeGuard[Tree]:
    """Whether a value is a mapping; `raydis.config.yamltext` lets no keys but strings through."""
    return isinstance(value, dict)
