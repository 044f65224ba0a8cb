"""Check codes and factors, and bring them into the form that the metrics take.

M samples, N units, D unit width, F factors. Every error says what was found and what to do. What is not an error, but
changes what is scored, is returned as a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import LARGEST_CODE, check_varying, constant_factors
from raydis.metrics.entry import Metric
from raydis.metrics.representation import all_scalars, per_unit_pca

MAX_NAMED = 6  # levels or units that a message lists
LARGEST_WHOLE = 2.0**53  # larger floats are whole because their precision ends there


@dataclass(frozen=True)
class Codes:
    """The checked codes of one run.

    Attributes:
        name: of the run, for tables and errors.
        scalars: (M, N), one number for each unit.
        unit_names: N names.
        vectors: (M, N, D), if the codes have this form.
        widths: N widths of these vectors.
    """

    name: str
    scalars: NDArray[np.float64]
    unit_names: tuple[str, ...]
    vectors: NDArray[Any] | None = None
    widths: tuple[int, ...] = ()

    def seen_by(self, metric: Metric) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
        """Return the columns that a metric scores, and the unit of each: all scalars of vectors if it needs them."""
        if self.vectors is None or "vectors" not in metric.needs:
            return self.scalars, None
        return all_scalars(self.vectors, self.widths)


@dataclass(frozen=True)
class Factors:
    """Checked factors.

    Attributes:
        levels: (M, F), integers.
        names: F names.
        notes: sentences about what was translated or is left out.
    """

    levels: NDArray[np.int64]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_factors(factors: Any, names: Sequence[str] | None = None) -> Factors:
    """Return factors as integer levels.

    Args:
        factors: (M, F): integers, whole floats or text; or a data frame, each of whose columns may have its own type.
        names: F names; default: those of the data frame, or `factor 0` and so on.

    Raises:
        MetricError: values that are no levels (fractions, missing values), fewer than two factors that vary, a factor
            with hardly two rows for each level, or names that do not fit.
    """
    columns, own = _columns(factors, "factors")
    if not columns or not len(columns[0]):
        raise MetricError("the table of factors is empty: give one row for each sample and one column for each factor")
    labels = tuple(names or own or (f"factor {j}" for j in range(len(columns))))
    if len(labels) != len(columns) or len(set(labels)) != len(labels):
        raise MetricError(
            f"{len(labels)} names for {len(columns)} factors ({', '.join(labels)}): give each column a name of its own"
        )
    levels: list[NDArray[np.int64]] = []
    notes: list[str] = []
    for name, column in zip(labels, columns, strict=True):
        found, note = _levels(_called("factor", name), column)
        levels.append(found)
        notes += [note] if note else []
    table = np.stack(levels, axis=1)
    check_varying(table)
    for name, column in zip(labels, table.T, strict=True):
        num_levels = len(np.unique(column))
        if num_levels > len(table) // 2:
            raise MetricError(
                f"{_called('factor', name)} has {num_levels} levels in {len(table)} rows, so most have a single row: "
                "leave it out if it numbers the rows, or merge its values into fewer levels (numpy.digitize)"
            )
    left_out = [labels[j] for j in constant_factors(table)]
    if left_out:
        notes.append(f"{_listed('factor', left_out)} has a single level in these rows, and the metrics leave it out")
    return Factors(table, labels, tuple(notes))


def check_codes(
    codes: Any, *, num_rows: int | None, unit_widths: Sequence[int] | Mapping[str, Sequence[int]] | None = None
) -> list[Codes]:
    """Return the codes of each run, with one number for each unit.

    Args:
        codes: (M, N) or (M, N, D) of one run; of several, a list or a dictionary of such arrays, whose keys name them.
            An array may be a data frame of N numeric columns.
        num_rows: M, the number of rows of the factors; None without factors.
        unit_widths: N widths of units that are vectors, with zeros beyond them: for all runs, or for each by its name.
            Default: what the zeros at the ends of all vectors of a unit leave.

    Raises:
        MetricError: codes that are no such arrays, of another number of rows, with values that are not finite, or that
            are all constant; or widths that do not fit the codes.
    """
    runs: dict[str, Any]
    if isinstance(codes, Mapping):
        named = cast("Mapping[Any, Any]", codes)
        runs = {str(name): each for name, each in named.items()}
    elif isinstance(codes, list | tuple) and all(len(_shape(each)) > 1 for each in cast("Sequence[Any]", codes)):
        runs = {f"run {number}": each for number, each in enumerate(cast("Sequence[Any]", codes))}
    else:
        runs = {"codes": codes}
    if not runs:
        raise MetricError("there are no codes: give the array of at least one run")
    found: list[Codes] = []
    for name, each in runs.items():
        widths = unit_widths.get(name) if isinstance(unit_widths, Mapping) else unit_widths
        rows = len(found[0].scalars) if num_rows is None and found else num_rows
        found.append(_codes_of(name, each, rows, "the factors have" if num_rows else f"{next(iter(runs))} has", widths))
    return found


def _shape(array: Any) -> tuple[int, ...]:
    """Return the shape of an array or data frame; () of anything else, such as a list of numbers."""
    return tuple(getattr(array, "shape", ()))


def _codes_of(name: str, codes: Any, num_rows: int | None, others: str, widths: Sequence[int] | None) -> Codes:
    own = tuple(map(str, codes.columns)) if hasattr(codes, "columns") else None
    table = _array(name, codes)
    if table.ndim not in (2, 3) or 0 in table.shape:
        hint = "add the axis of units, as in codes[:, None]" if table.ndim == 1 else "flatten or pool other axes first"
        raise MetricError(
            f"{name} of shape {table.shape}: codes must be (M, N), one number for a unit, or (M, N, D), one vector; "
            f"{hint}"
        )
    if table.dtype.kind not in "fiub":
        raise MetricError(f"{name} of type {table.dtype} are not real numbers: give an array of floats")
    if num_rows is not None and len(table) != num_rows:
        turned = "; transpose the codes" if table.ndim == 2 and table.shape[1] == num_rows else ""
        raise MetricError(
            f"{name} has {len(table)} rows, but {others} {num_rows}: row i of both must be the same sample{turned}"
        )
    unit_names = own or tuple(f"unit {unit}" for unit in range(table.shape[1]))
    scalars = per_unit_pca(table)
    broken = ~(np.abs(scalars) <= LARGEST_CODE)  # NaN compares false
    if broken.any():
        units = [unit_names[unit] for unit in np.flatnonzero(broken.any(axis=0))]
        raw = ~np.isfinite(table.reshape(len(table), -1)).all(axis=1)
        rows = int(raw.sum()) or int(broken.any(axis=1).sum())
        raise MetricError(
            f"{name}: {_listed('unit', units)} of {table.shape[1]} holds NaN, infinity or values beyond float32, in "
            f"{rows} of {len(table)} rows: remove these rows from codes and factors, or mend the encoder"
        )
    if not (scalars != scalars[0]).any():
        raise MetricError(
            f"{name}: all {table.shape[1]} units are constant, so the representation has collapsed and nothing can be "
            "scored: check the encoder, or that the right array was saved"
        )
    if table.ndim == 2:
        return Codes(name, scalars, unit_names)
    return Codes(name, scalars, unit_names, table, _checked_widths(name, table, widths))


def _checked_widths(name: str, vectors: NDArray[Any], widths: Sequence[int] | None) -> tuple[int, ...]:
    """Return the widths of vectors (M, N, D). Raises MetricError if the vectors do not have them."""
    if widths is None:  # vectors of different widths end in zeros, which are no scalars
        varies = (vectors != vectors[0]).any(axis=0)  # (N, D)
        return tuple(int(np.flatnonzero(each)[-1]) + 1 if each.any() else 1 for each in varies)
    found = tuple(map(int, widths))
    if len(found) != vectors.shape[1] or not all(1 <= width <= vectors.shape[2] for width in found):
        raise MetricError(
            f"{name}: unit_widths {list(found)} do not fit codes of shape {vectors.shape}: give each of the "
            f"{vectors.shape[1]} units a width from 1 to {vectors.shape[2]}"
        )
    for unit, width in enumerate(found):
        if vectors[:, unit, width:].any():
            raise MetricError(f"{name}: unit {unit} has values beyond its width {width}: correct unit_widths")
    return found


def _array(name: str, table: Any) -> NDArray[Any]:
    """Return codes or factors, which messages call by `name`, as one array.

    Raises:
        MetricError: rows of unequal lengths, values that a mask hides, or a column of a data frame without numbers.
    """
    if np.ma.is_masked(table):
        raise MetricError(f"{name} holds masked values: remove their rows from codes and factors")
    try:
        array: NDArray[Any] = np.asarray(table)
    except ValueError as error:
        raise MetricError(f"{name} is no array ({error}): give each row as many values as the others") from error
    if array.dtype.kind not in "OUT" or not hasattr(table, "columns") or len(set(table.columns)) < len(table.columns):
        return array
    columns = [np.asarray(table[column]) for column in table.columns]  # each of which has a type of its own
    if text := [label for label, each in zip(table.columns, columns, strict=True) if each.dtype.kind not in "fiub"]:
        raise MetricError(f"{name}: {_listed('column', list(map(str, text)))} is not of numbers: leave it out")
    return np.column_stack(columns)


def _columns(table: Any, what: str) -> tuple[list[NDArray[Any]], tuple[str, ...] | None]:
    """Return the columns of an array (M, F) or (M,), or of a data frame, and the names of the latter."""
    if hasattr(table, "columns"):
        return [np.asarray(table[name]) for name in table.columns], tuple(map(str, table.columns))
    array = _array(what, table)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise MetricError(f"{what} of shape {array.shape} are not a table (M, F) of samples by factors")
    return list(array.T), None


def _levels(name: str, column: NDArray[Any]) -> tuple[NDArray[np.int64], str | None]:
    """Return the levels (M,) of a factor, which messages call by `name`, and a note if they were translated.

    Raises:
        MetricError: values that are no levels.
    """
    kind = column.dtype.kind
    if kind == "b" or (kind in "iu" and int(np.abs(column.astype(np.float64)).max()) <= LARGEST_WHOLE):
        return column.astype(np.int64), None
    if kind in "iu":
        return _whole(name, column.astype(np.float64)), None
    if kind == "f":
        return _whole(name, column), None
    if kind == "O":
        if missing := sum(map(_is_missing, column)):
            raise MetricError(f"{name} misses {missing} of {len(column)} values: remove these rows")
        if all(isinstance(value, int | np.integer | np.bool_) for value in column):
            return _whole(name, column.astype(np.float64)), None
        if not all(isinstance(value, str) for value in column):
            raise MetricError(f"{name} mixes types: give integers, or text alone")
        column, kind = column.astype(np.str_), "U"
    if kind not in "UT":
        raise MetricError(f"{name} of type {column.dtype} has no levels: give the integer index of each value")
    if missing := int((column == "").sum()):
        raise MetricError(f"{name} misses {missing} of {len(column)} values: remove these rows")
    values, levels = np.unique(column, return_inverse=True)
    shown = ", ".join(map(str, values[:MAX_NAMED])) + (", ..." if len(values) > MAX_NAMED else "")
    return levels.astype(np.int64), f"{name} is text: its {len(values)} values in sorted order ({shown})"


def _is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or the NA of pandas, whose comparisons are NA."""
    equal = value == value
    return value is None or not isinstance(equal, bool | np.bool_) or not equal


def _whole(name: str, column: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return floats (M,) as integers if they are exactly that."""
    column = column.astype(np.float64)
    if missing := int((~np.isfinite(column)).sum()):
        raise MetricError(f"{name} misses {missing} of {len(column)} values (NaN or infinity): remove these rows")
    odd = (column != np.round(column)) | (np.abs(column) > LARGEST_WHOLE)
    if odd.any():
        raise MetricError(
            f"{name} holds {float(column[odd][0]):g}, but levels are integers up to 2^53: divide a continuous factor "
            "into levels first (numpy.digitize), or give the index of each value (numpy.unique, return_inverse)"
        )
    return column.astype(np.int64)


def _called(what: str, name: str) -> str:
    """Return `unit z0`, or the name alone if it says already what it names, as `unit 0` does."""
    return name if name.startswith(f"{what} ") else f"{what} {name}"


def _listed(what: str, names: Sequence[str]) -> str:
    """Return `unit a` or, of several, the first and how many others."""
    first = _called(what, names[0])
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} other{'s' * (len(names) > 2)})"
