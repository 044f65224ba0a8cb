"""Read the columns of a Parquet file as arrays. M samples."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydis.errors import DataError


def read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    """Return the columns by name: (M,), or (M, N) and (M, N, D) for columns of lists and of lists of lists.

    Raises:
        DataError: pyarrow is not installed.
        ValueError: the file is damaged, or the lists of a column have different lengths.
    """
    try:  # here, because this format alone needs them
        parquet, compute, types = (
            importlib.import_module(f"pyarrow.{name}") for name in ("parquet", "compute", "types")
        )
    except ImportError as error:
        raise DataError(
            f"{path} needs pyarrow, which is not installed: install it (pip install pyarrow), or save the table as "
            ".npz or .csv"
        ) from error
    table = parquet.read_table(path)
    return {name: _column(name, table.column(name), compute, types) for name in table.column_names}


def _column(name: str, column: Any, compute: Any, types: Any) -> NDArray[Any]:
    if types.is_dictionary(column.type):  # pandas' categories
        column = column.cast(column.type.value_type)
    shape: list[int] = [len(column)]
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        lengths: set[Any] = set(compute.unique(compute.list_value_length(column)).to_pylist())
        if len(lengths) != 1 or lengths <= {None, 0}:
            found = ", ".join(sorted(map(str, lengths)))
            raise ValueError(f"the lists of its column {name} must have one length, found {found}")
        shape.append(lengths.pop())
        column = compute.list_flatten(column)
    return np.asarray(column.to_numpy()).reshape(shape)
