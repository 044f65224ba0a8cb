"""Read tables of codes and factors from NumPy, CSV and Parquet files, without unpickling anything.

A file of NumPy holds one array, an .npz several. `features.npz:z` names the array z of an .npz. The columns of CSV and
Parquet files have names and types of their own; a Parquet column may hold lists, one vector for each sample.
"""

from __future__ import annotations

import csv
import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from raydis.errors import DataError
from raydis.evaluation.parquet import read_parquet

NUMPY, TEXT, PARQUET = (".npy", ".npz"), (".csv", ".tsv", ".txt"), (".parquet", ".pq")
SUFFIXES = (*NUMPY, *TEXT, *PARQUET)
DELIMITERS = "\t;, "  # in the order in which a first line is searched for them
UNREADABLE = (  # all that damaged files were seen to raise
    *(OSError, EOFError, ValueError, KeyError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, csv.Error, tokenize.TokenError),
)


@dataclass(frozen=True, eq=False)
class Columns:
    """Named columns of equal length, with as much of a data frame's interface as `raydis.evaluate` uses."""

    values: Mapping[str, NDArray[Any]]

    @property
    def columns(self) -> list[str]:
        """The names, in order."""
        return list(self.values)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the column of a name."""
        return self.values[name]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the columns as one array (M, N)."""
        table = np.column_stack(list(self.values.values()))
        return table if dtype is None else table.astype(dtype)

    def only(self, names: Iterable[str]) -> Columns:
        """Return some of the columns, in the given order."""
        return Columns({name: self.values[name] for name in names})


@dataclass(frozen=True)
class Found:
    """What was read for one run.

    Attributes:
        codes: (M, N) or (M, N, D), or columns.
        factors: those that the same file holds; None if it holds none.
        factor_names: of the factors, if they are an array and the file names them.
        notes: sentences about columns that were left out.
    """

    codes: NDArray[Any] | Columns
    factors: NDArray[Any] | Columns | None = None
    factor_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def is_table(source: str) -> bool:
    """Return whether a source is a file of a known kind, and not a checkpoint."""
    return _split(source)[0].suffix.lower() in SUFFIXES


def read_codes(source: str, *, factor_names: Sequence[str] | None = None) -> Found:
    """Read the codes of one run, and the factors if the same file holds them.

    Args:
        source: FILE, or FILE.npz:KEY.
        factor_names: the columns of a CSV or Parquet file that are factors; all other numeric columns are units.

    Raises:
        DataError: the file is missing or damaged, has no numeric columns, or several arrays of which none is `codes`.
    """
    path, key = _split(source)
    found = _read(path)
    if isinstance(found, Columns):
        return _units_of(path, found, factor_names or ())
    codes = _pick(path, found, key, "codes")
    factors = None if key == "factors" or codes is found.get("factors") else found.get("factors")
    return Found(codes, factors, _stored_names(found))


def read_factors(
    source: str, *, factor_names: Sequence[str] | None = None
) -> tuple[NDArray[Any] | Columns, tuple[str, ...] | None]:
    """Read factors, and their names if the file names them.

    Args:
        source: FILE, or FILE.npz:KEY. An .npz may also hold one array (M,) for each factor, under its name.
        factor_names: columns to use, if the file has columns of these names; otherwise the names of its columns.

    Raises:
        DataError: the file is missing or damaged, or holds several arrays of which none is `factors`.
    """
    path, key = _split(source)
    found = _read(path)
    if not isinstance(found, Columns):
        if key is not None or "factors" in found or len(found) == 1 or {array.ndim for array in found.values()} != {1}:
            return _pick(path, found, key, "factors"), tuple(factor_names or ()) or _stored_names(found)
        found = Columns(found)  # one array for each factor
    else:
        found, _ = _without_index(found)
    if factor_names and set(factor_names) <= set(found.columns):
        return found.only(factor_names), None
    return found, tuple(factor_names) if factor_names else None


def path_of(source: str) -> Path:
    """Return the path of FILE, or of FILE.npz:KEY."""
    return _split(source)[0]


def are_equal(one: NDArray[Any] | Columns, other: NDArray[Any] | Columns) -> bool:
    """Return whether two tables of factors hold the same values, under the same names. Missing values are equal."""
    if isinstance(one, Columns) and isinstance(other, Columns):
        return one.columns == other.columns and all(are_equal(one[name], other[name]) for name in one.columns)
    if isinstance(one, Columns) or isinstance(other, Columns):
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f"))


def _split(source: str) -> tuple[Path, str | None]:
    """Return the path and the key of `FILE` or `FILE.npz:KEY`."""
    before, colon, key = source.rpartition(":")
    if colon and before.lower().endswith(".npz"):
        return Path(before), key
    return Path(source), None


def _read(path: Path) -> Columns | dict[str, NDArray[Any]]:
    """Return a table of named columns, or arrays by their keys ("" for the array of an .npy)."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: correct the path (known kinds are {', '.join(SUFFIXES)})")
    suffix = path.suffix.lower()
    try:
        if suffix in PARQUET:
            return Columns(read_parquet(path))
        if suffix in TEXT:
            return Columns(_parse(path.read_text(encoding="utf-8-sig")))
        if suffix not in NUMPY:
            raise DataError(f"{path} has the suffix {suffix or 'none'}: use one of {', '.join(SUFFIXES)}")
        with path.open("rb") as file:  # np.load leaves a damaged .npz open
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except UNREADABLE as error:
        if "allow_pickle" in str(error):  # of an array of objects, or of a file that does not begin as numpy.save's
            raise DataError(
                f"{path} holds no array of numbers: save one with numpy.save or numpy.savez (nothing is unpickled)"
            ) from error
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}): save it again") from error


def _pick(path: Path, arrays: Mapping[str, NDArray[Any]], key: str | None, what: str) -> NDArray[Any]:
    """Return the array of a key, or the one that is meant without a key."""
    if key is None and (what in arrays or len(arrays) == 1):
        key = what if what in arrays else next(iter(arrays))
    if key is None or key not in arrays:
        keys = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        asked = f"no array {key}" if key is not None else f"{len(arrays)} arrays, none of them named {what}"
        raise DataError(f"{path} has {asked}: name one of its arrays ({keys or 'it has none'}) as {path}:KEY")
    return arrays[key]


def _stored_names(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...] | None:
    """Return the array `factor_names` of an .npz, if there is one."""
    names = arrays.get("factor_names")
    return None if names is None else tuple(map(str, np.ravel(names)))


def _units_of(path: Path, table: Columns, factor_names: Sequence[str]) -> Found:
    """Divide the columns of a file into factors and units, and leave out what is neither."""
    missing = [name for name in factor_names if name not in table.columns]
    if missing:
        shown = ", ".join(table.columns)
        raise DataError(f"{path} has no column {missing[0]} (from --factor-names): its columns are {shown}")
    rest, notes = _without_index(table.only(name for name in table.columns if name not in factor_names))
    numeric = [name for name in rest.columns if rest[name].dtype.kind in "fiu"]
    if not numeric:
        raise DataError(
            f"{path} has no numeric columns that could be units (its columns are {', '.join(table.columns)}): give one "
            "column of numbers for each unit"
        )
    if text := [name for name in rest.columns if name not in numeric]:
        notes = (*notes, f"columns of {path.name} that are not numbers were left out: {', '.join(text)}")
    units: NDArray[Any] | Columns = rest.only(numeric)
    if any(rest[name].ndim > 1 for name in numeric):
        if len(numeric) > 1:
            raise DataError(f"{path} has a column of lists beside others ({', '.join(numeric)}): keep one of them")
        units = rest[numeric[0]]
    return Found(units, table.only(factor_names) if factor_names else None, None, notes)


def _without_index(table: Columns) -> tuple[Columns, tuple[str, ...]]:
    """Leave out the columns in which pandas stores the numbers of the rows, and an empty one without a name."""
    index = [
        name
        for name in table.columns
        if (not name or name.startswith(("Unnamed: ", "__index_level_"))) and _counts_rows(table[name])
    ]
    empty = [name for name in table.columns if not name and _is_empty(table[name])]  # after a comma at the end of lines
    kept = table.only(name for name in table.columns if name not in (*index, *empty))
    notes = [f"column {name or 'without a name'} numbers the rows, and was left out" for name in index]
    return kept, tuple(notes + ["a column without a name is empty, and was left out" for _ in empty])


def _counts_rows(column: NDArray[Any]) -> bool:
    return column.dtype.kind in "fiu" and column.ndim == 1 and bool((np.diff(column) == 1).all())


def _is_empty(column: NDArray[Any]) -> bool:
    return column.dtype.kind == "f" and column.ndim == 1 and bool(np.isnan(column).all())


def _parse(text: str) -> dict[str, NDArray[Any]]:
    """Return the columns of a text file. Without a line of names, they are counted.

    Raises:
        ValueError: the file is empty or has names alone, or its lines have different numbers of values.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((each for each in DELIMITERS if each in first.strip()), ",")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if row]
    if not rows:
        raise ValueError("it has no lines")
    if wrong := next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None):
        raise ValueError(f"its row {wrong} has {len(rows[wrong - 1])} values, and its first {len(rows[0])}")
    has_names = not all(_is_number(cell) for cell in rows[0]) or _counts_columns(rows)
    if has_names and len(rows) == 1:
        raise ValueError(f"it has the names {', '.join(rows[0])}, but no rows")
    names = [name.strip() for name in rows[0]] if has_names else [str(place) for place in range(len(rows[0]))]
    if len(set(names)) != len(names):
        raise ValueError(f"two columns have the same name: {', '.join(names)}")
    columns = zip(*rows[has_names:], strict=True)
    return dict(zip(names, map(_typed, columns), strict=False))


def _counts_columns(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row numbers the columns, as pandas does where they have no names: 0, 1, 2, ...

    Rows of integers alone may begin with the same numbers. Then it is one of them, unless a first cell is empty, which
    is the head of the numbers of the rows.
    """
    head = [cell.strip() for cell in rows[0]]
    index = int(head[0] == "")
    if len(head) == index or head[index:] != [str(place) for place in range(len(head) - index)]:
        return False
    return bool(index) or not all(cell.strip().lstrip("+-").isdigit() for row in rows[1:] for cell in row)


def _typed(cells: Sequence[str]) -> NDArray[Any]:
    """Return a column (M,) as floats, with NaN for empty cells, or as text if one of its cells is not a number."""
    try:
        return np.array([cell if cell.strip() else "nan" for cell in cells]).astype(np.float64)
    except ValueError:
        return np.array([cell.strip() for cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell.strip()
    return True
