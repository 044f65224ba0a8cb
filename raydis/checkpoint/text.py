"""The JSON files of a checkpoint: how their bytes are made and read."""

from __future__ import annotations

import json
from typing import Any, cast

from raydis.errors import CheckpointError

Tree = dict[str, Any]


def to_json(name: str, tree: Tree) -> bytes:
    """Return the bytes of a JSON file.

    Args:
        name: of the file, for the error.

    Raises:
        CheckpointError: a value that JSON lacks (NaN, an array, ...).
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
        source: where the bytes came from, for the error.

    Raises:
        CheckpointError: the bytes are not JSON, or hold no mapping.
    """
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets, without end
        raise CheckpointError(f"{source} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{source} holds a {type(tree).__name__}, expected a mapping")
    return cast("Tree", tree)
