"""Write an evaluation as text of at most WIDTH columns: scores with bars, and the importance of units as a heat map.

A line is a list of spans, texts with a style. `as_text` joins their texts; the command line prints them in colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from raydis.evaluation.result import Estimate, Evaluation, Run, by_importance
from raydis.metrics.entry import Number

WIDTH = 100
BAR = 28
MAX_UNITS = 40  # rows of the importance; the table that `--output` writes has all
MAX_NAME = 12
MAX_TITLE = 40
LEAST_SHOWN = 0.005  # smaller importances round to 0.00
SHADES = " ░▒▓█"

Style = Literal["plain", "title", "dim", "score", "bar", "chance", "heat"]


class Span(NamedTuple):
    """A text with a style."""

    text: str
    style: Style


Line = list[Span]


def as_text(found: Evaluation) -> str:
    """Return an evaluation as text without colours."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in as_lines(found))


def as_lines(found: Evaluation) -> list[Line]:
    """Return the lines of an evaluation."""
    first, blocks = found.runs[0], [_head(found), _scores(found)]
    if len(found.runs) > 1:
        blocks.append(_runs(found))
    if found.importance is not None:
        blocks.append(_importance(first, found))
    if found.notes:
        blocks.append([line for note in found.notes for line in _wrapped(f"note: {note}", "dim")])
    for block in blocks[1:]:
        block.insert(0, [])
    return [line for block in blocks for line in block]


def settings(found: Evaluation) -> str:
    """Return what was scored and how, as one sentence without a full stop."""
    runs = f"{len(found.runs)} runs, " if len(found.runs) > 1 else ""
    units = sorted({len(run.unit_names) for run in found.runs})
    num_units = str(units[0]) if len(units) == 1 else f"{units[0]} to {units[-1]}"
    if not found.factor_names:
        return f"{runs}{found.num_samples:,} samples, {num_units} units, no factors; seed {found.seed}"
    return (
        f"{runs}{found.num_samples:,} samples, {num_units} units, {len(found.factor_names)} factors; "
        f"protocol {found.protocol}, estimator {found.estimator}, seed {found.seed}"
    )


def interval_note(found: Evaluation) -> str:
    """Return how the intervals came about, as one sentence with a full stop."""
    share = f"{100 * found.confidence:g} % confidence intervals"
    match found.intervals:
        case "rows":
            return f"{share} by bootstrap over the rows, {found.num_draws} draws."
        case "draws":
            return f"{share} over the random samples that the metrics draw, {found.num_draws} draws."
        case "runs":
            return f"{share} of the mean over {len(found.runs)} training runs."
        case None if len(found.runs) > 1:  # by UDR alone
            return "No intervals, because the runs are compared with each other."
        case None:
            return "No intervals, because each metric was computed once (num_draws=1)."


def heading(number: Number) -> str:
    """Return the title of a number, with its range and direction if they are not the usual ones."""
    scale = "" if (number.low, number.high) == (0.0, 1.0) else f" ({number.low:g} to {number.high:g})"
    return number.title + scale + ("" if number.direction == "max" else " (lower is better)")


def interval(estimate: Estimate) -> str:
    """Return the interval as `[0.712, 0.733]`; empty without one."""
    return "" if estimate.low is None else f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _head(found: Evaluation) -> list[Line]:
    if not found.factor_names:
        return _wrapped(settings(found), "title")
    levels = [f"{name} ({num})" for name, num in zip(found.factor_names, found.num_levels, strict=True)]
    return [
        *_wrapped(settings(found), "title"),
        *_wrapped(f"factors (levels): {', '.join(levels)}", "dim", max_lines=3),
    ]


def _scores(found: Evaluation) -> list[Line]:
    titles = [heading(estimate.number) for estimate in found.estimates]
    width = min(MAX_TITLE, max(map(len, titles)))
    share = f"{100 * found.confidence:g} % interval" if found.intervals else ""
    head = f"{'':{width}}  {'mean' if len(found.runs) > 1 else 'score':>6}  {share:<16}"
    lines: list[Line] = [[Span(head.rstrip(), "title")]]
    for title, estimate in zip(titles, found.estimates, strict=True):
        name = f"{shortened(title, width):{width}}  "
        if estimate.value is None:
            indent = " " * (width + 10)
            reason = textwrap.wrap(estimate.reason or "", WIDTH - len(indent))
            lines.append([Span(name, "plain"), Span("     –  ", "dim"), Span(reason[0] if reason else "", "dim")])
            lines += [[Span(indent + line, "dim")] for line in reason[1:]]
            continue
        row: Line = [Span(name, "plain"), Span(f"{estimate.value:6.3f}  ", "score")]
        row += [Span(f"{interval(estimate):<16}  ", "dim")] if found.intervals else []
        lines.append(row + _bar(estimate))
    return [*lines, [], *_wrapped(interval_note(found), "dim")]


def _bar(estimate: Estimate) -> Line:
    """Draw the place of a value in its number's range, and its interval as the blurred end of the bar."""
    number, value = estimate.number, estimate.value or 0.0

    def cells(at: float) -> int:
        return round(BAR * (at - number.low) / (number.high - number.low))

    low = cells(value if estimate.low is None else estimate.low)
    high = cells(value if estimate.high is None else estimate.high)
    return [Span("█" * low, "bar"), Span("▒" * (high - low), "chance"), Span("·" * (BAR - high), "dim")]


def _runs(found: Evaluation) -> list[Line]:
    """Return the numbers of each run, as many runs beside each other as there is room for."""
    width = min(MAX_TITLE, max(len(estimate.number.title) for estimate in found.estimates))
    labels = distinct_labels([run.name for run in found.runs], MAX_NAME)
    columns = [max(7, len(label)) for label in labels]
    lines: list[Line] = []
    for part in _parts(columns, WIDTH - width):
        runs = [found.runs[place] for place in part]
        head = "".join(f"  {labels[place]:>{columns[place]}}" for place in part)
        lines += [[], [Span(f"{'':{width}}{head}", "title")]] if lines else [[Span(f"{'':{width}}{head}", "title")]]
        for row, estimate in enumerate(found.estimates):
            values = [run.estimates[row].value for run in runs]
            shown = ["–" if value is None else f"{value:.3f}" for value in values]
            cells = "".join(f"  {text:>{columns[place]}}" for place, text in zip(part, shown, strict=True))
            lines.append([Span(f"{shortened(estimate.number.title, width):{width}}", "plain"), Span(cells, "score")])
    return lines


def _importance(run: Run, found: Evaluation) -> list[Line]:
    """Return the importance as a heat map, as many factors beside each other as there is room for."""
    importance = run.importance
    assert importance is not None
    order = by_importance(importance, num_most=MAX_UNITS)
    of_run = f" of {run.name}" if len(found.runs) > 1 else ""
    lines = _wrapped(f"importance of each unit{of_run} for each factor (each column sums to 1)", "title")
    units = distinct_labels([run.unit_names[unit] for unit in order], 2 * MAX_NAME)
    factors = distinct_labels(found.factor_names, MAX_NAME)
    width = max(map(len, units))
    columns = [max(7, len(name)) for name in factors]
    for part in _parts(columns, WIDTH - width):
        head = "".join(f"  {factors[j]:>{columns[j]}}" for j in part)
        lines += [[], [Span(f"{'':{width}}{head}", "title")]]
        for unit, name in zip(order, units, strict=True):
            row: Line = [Span(f"{name:{width}}", "plain")]
            for j in part:
                row += [Span("  " + " " * (columns[j] - 7), "plain"), *_cell(float(importance[unit, j]))]
            lines.append(row)
    if len(order) < len(importance):
        most = float(np.delete(importance, order, axis=0).max())
        lines += _wrapped(f"and {len(importance) - len(order)} other units, of importance {most:.2f} at most", "dim")
    return lines


def _cell(value: float) -> Line:
    if value < LEAST_SHOWN:
        return [Span("      ·", "dim")]
    shade = SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)]
    return [Span(shade * 2, "heat"), Span(f" {value:.2f}", "score" if value >= 0.1 else "dim")]


def _parts(columns: Sequence[int], room: int) -> Iterable[list[int]]:
    """Divide columns of these widths, each after two spaces, into parts that fit into the room."""
    part: list[int] = []
    for place, _ in enumerate(columns):
        if part and sum(columns[each] + 2 for each in [*part, place]) > room:
            yield part
            part = []
        part.append(place)
    yield part


def shortened(name: str, width: int) -> str:
    """Return a name, cut to a width."""
    return name if len(name) <= width else f"{name[: width - 1]}…"


def distinct_labels(names: Sequence[str], width: int) -> list[str]:
    """Return names, each cut to a width, such that names that differ still do.

    The first of these cuts that tells all of them apart is made: at the end; at the start; to the folders of a path
    that differ; to these, at the start. If none does, each name gets its number in front.
    """
    middle = _without_shared_folders(names)
    for candidates in (names, middle):
        for cut in (shortened, _cut_start):
            found = [cut(name, width) for name in candidates]
            if len(set(found)) == len(set(names)):
                return found
    return [shortened(f"{number} {name}", width) for number, name in enumerate(middle, 1)]


def _cut_start(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[len(name) - width + 1 :]}"


def _without_shared_folders(names: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them share at their start and at their end."""
    paths = [name.split("/") for name in names]
    least = min(map(len, paths)) - 1
    first = next((place for place in range(least) if len({path[place] for path in paths}) > 1), least)
    last = next(
        (place for place in range(least - first) if len({path[-1 - place] for path in paths}) > 1), least - first
    )
    return ["…" * (first > 0) + "/".join(path[first : len(path) - last]) + "…" * (last > 0) for path in paths]


def _wrapped(text: str, style: Style, max_lines: int | None = None) -> list[Line]:
    return [[Span(line, style)] for line in textwrap.wrap(text, WIDTH, max_lines=max_lines, placeholder=" ...")]
