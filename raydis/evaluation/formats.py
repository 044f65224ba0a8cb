r"""Write an evaluation as JSON, CSV, Markdown or LaTeX.

- JSON holds everything, as `Evaluation.to_dict`.
- CSV has one line for each number of each run, and, of several runs, of their mean.
- Markdown has the scores and the importance as tables, and the notes.
- LaTeX has the same as two `tabular`s with the rules of the package booktabs, and the notes as comments.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence

from raydis.evaluation.result import Estimate, Evaluation, by_importance
from raydis.evaluation.text import as_text, heading, interval, interval_note, settings
from raydis.version import __version__

MEAN = "mean"  # the run of a line of CSV that holds the mean over the runs
LATEX = (
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # which LaTeX's default font lacks
)
# What would begin an element of Markdown or HTML, or end a cell. An underscore within a word does neither.
MARKED = re.compile(r"[\\`*<|$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_json(found: Evaluation) -> str:
    """Return everything that was found, and the version of raydis."""
    return json.dumps({"raydis": __version__} | found.to_dict(), indent=2, allow_nan=False) + "\n"


def to_csv(found: Evaluation) -> str:
    """Return one line for each number of each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "metric", "value", "spread", "low", "high", "confidence", "reason"))
    rows = [(run.name, estimate) for run in found.runs for estimate in run.estimates]
    if len(found.runs) > 1:
        rows += [(MEAN, estimate) for estimate in found.estimates]
    for name, each in rows:
        confidence = None if each.low is None else found.confidence
        writer.writerow((name, each.name, each.value, each.spread, each.low, each.high, confidence, each.reason))
    return text.getvalue()


def to_markdown(found: Evaluation) -> str:
    """Return the scores and the importance of the first run as tables of Markdown."""
    share = f"{100 * found.confidence:g} % interval"
    head = ("metric", "mean" if len(found.runs) > 1 else "score", *((share,) if found.intervals else ()))
    rows = [_row(each, found, dash="–") for each in found.estimates]
    parts = [_pipes(head, rows), f"{_capital(settings(found))}. {interval_note(found)}"]
    parts += [f"{as_markdown(text)}." for text in (*_reasons(found), *(f"Note: {note}" for note in found.notes))]
    if found.importance is not None:
        parts.append("Importance of each unit for each factor:")
        rows = [(as_markdown(unit), *values) for unit, *values in _importance_rows(found)]
        parts.append(_pipes(("unit", *map(as_markdown, found.factor_names)), rows))
    return "\n\n".join(parts) + "\n"


def to_latex(found: Evaluation) -> str:
    """Return the scores and the importance of the first run as tables of LaTeX."""
    share = f"{100 * found.confidence:g} % interval"
    head = ("metric", "mean" if len(found.runs) > 1 else "score", *((share,) if found.intervals else ()))
    rows = [_row(each, found, dash="--") for each in found.estimates]
    parts = [
        r"% Needs \usepackage{booktabs}.",
        f"% {settings(found)}",
        f"% {interval_note(found)}",
        *(f"% {' '.join(text.split())}" for text in (*_reasons(found), *found.notes)),
        _tabular("lr" + "r" * bool(found.intervals), head, rows),
    ]
    if found.importance is not None:
        parts += ["", "% Importance of each unit for each factor."]
        columns = "l" + "r" * len(found.factor_names)
        parts.append(_tabular(columns, ("unit", *found.factor_names), _importance_rows(found)))
    return "\n".join(parts) + "\n"


def to_text(found: Evaluation) -> str:
    """Return what the terminal shows, without colours."""
    return as_text(found) + "\n"


FORMATS: dict[str, Callable[[Evaluation], str]] = {
    "text": to_text,
    "json": to_json,
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}
SUFFIXES = {".txt": "text", ".json": "json", ".csv": "csv", ".md": "markdown", ".tex": "latex"}


def _row(estimate: Estimate, found: Evaluation, *, dash: str) -> tuple[str, ...]:
    value = dash if estimate.value is None else f"{estimate.value:.3f}"
    return (heading(estimate.number), value, *((interval(estimate),) if found.intervals else ()))


def _reasons(found: Evaluation) -> list[str]:
    """Return `NUMBER: REASON`, in one line, for each number that has no value."""
    return [f"{heading(each.number)}: {' '.join(each.reason.split())}" for each in found.estimates if each.reason]


def _importance_rows(found: Evaluation) -> list[tuple[str, ...]]:
    importance, names = found.importance, found.runs[0].unit_names
    assert importance is not None
    return [(names[unit], *(f"{value:.2f}" for value in importance[unit])) for unit in by_importance(importance)]


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown whose columns are aligned in the source, too."""
    cells = (head, *rows)
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (f"{cell:{'>' if place else '<'}{widths[place]}}" for place, cell in enumerate(row))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + ("-" if place == 0 else ":") for place, width in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def as_markdown(text: str) -> str:
    """Return a text in one line of Markdown that shows as it is, also in the cell of a table."""
    return MARKED.sub(r"\\\g<0>", " ".join(text.split()))


def _tabular(columns: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # {} because a row that begins with a bracket would be read as an argument of the \\ before it
    lines = ["{}" * row[0].startswith(("[", "*")) + " & ".join(map(_escaped, row)) + r" \\" for row in (head, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *(f"  {line}" for line in body), r"\end{tabular}"])


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
