"""Print the result of an arena at its end: the table, what it shows, and where the files are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from raydis.arena.output import RESULT_FILES
from raydis.arena.result import ArenaResult
from raydis.arena.spec import ArenaSpec
from raydis.arena.words import what_is_not_shown, what_is_shown
from raydis.metrics.standing import with_spread
from raydis.sweep.words import print_facts, short


def print_result(result: ArenaResult, spec: ArenaSpec, command: Sequence[str], console: Console) -> None:
    """Print the table of entrants, the sentences of the report, and the files or the command that continues."""
    console.print(results_table(result, spec))
    for entry in result.entries:
        for reason in entry.reasons:
            console.print(f"{entry.name} {entry.state}: {reason}", highlight=False, markup=False, soft_wrap=True)
    if result.interrupted:
        pending = ", ".join(entry.name for entry in result.entries if entry.state == "pending")
        facts = {"interrupted": f"not yet complete: {pending}", "next": shlex.join(command)}
    else:
        for sentence in [*what_is_shown(result, spec), what_is_not_shown(result, spec)]:
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
        facts = {"folder": result.folder, "files": ", ".join(RESULT_FILES)}
    print_facts(console, facts)


def results_table(result: ArenaResult, spec: ArenaSpec) -> Table:
    """Return a table with a row for each entrant: final scores with their deviation, and the worst seed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("entrant", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for goal in spec.objectives:
        table.add_column(short(goal.metric), justify="right", no_wrap=True)
        table.add_column("worst", justify="right", no_wrap=True)
    table.add_column("state")
    for entry in result.entries:
        cells: list[str] = []
        for goal in spec.objectives:
            mean, worst = entry.mean(goal.metric), entry.worst(goal.metric)
            cells.append("" if mean is None else with_spread(mean, entry.std(goal.metric)))
            cells.append("" if worst is None else f"{worst:.3f}")
        table.add_row(entry.name, f"{len(entry.scored())} of {len(spec.seeds)}", *cells, entry.state)
    return table
