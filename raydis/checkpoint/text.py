"""Encode and decode the JSON files of a checkpoint."""

from __future__ import annotations

import json
from typing import Any, cast

from raydis.errors import CheckpointError

Tree = dict[str, Any]


def to_json(name: str, tree: Tree) -> bytes:
    """Return the bytes of a JSON file.

    Args:
        name: of the file, for error messages.

    Raises:
        CheckpointError: JSON cannot represent a value (NaN, an array, ...).
    """
    try:
        return f"{json.dumps(tree, indent=2, allow_nan=False)}\n".encode()
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{name} cannot hold these values: {error}. Use null for what could not be measured, and plain numbers"
        ) from error


def from_json(source: str, data: bytes) -> Tree:
    """Return the mapping in the bytes of a JSON file.

    Args:
        source: where the bytes came from, for error messages.

    Raises:
        CheckpointError: the bytes are not JSON, or are not a mapping.
    """
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets, without end
        raise CheckpointError(f"{source} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{source} holds a {type(tree).__name__}, expected a mapping")
    return cast("Tree", tree)
