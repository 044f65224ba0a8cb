"""Print the result of a sweep at its end, and the commands that a user may want to run next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raydis.metrics.scores import Scores
from raydis.metrics.standing import Objective, with_spread
from raydis.sweep.files import STUDY_FILE
from raydis.sweep.read import StoredSweep
from raydis.sweep.result import SweepResult
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import Replicates
from raydis.sweep.words import brief, duration, print_facts, short

DEFAULT_STORAGE = "runs"
SERVED = "quickstart@best"  # the model in serve_configs/local.yaml


def print_result(
    result: SweepResult, spec: SweepSpec, storage: str, console: Console, *, running: bool = False, tables: bool = True
) -> None:
    """Print the table of trials, the best trial, and where the files are.

    Args:
        running: whether a process runs the sweep now.
        tables: whether the folder holds tables of these trials.
    """
    console.print(trials_table(result, spec))
    for record in result.records:
        if record.reason:
            console.print(f"trial {record.number} {record.state}: {record.reason}", highlight=False, soft_wrap=True)
    if result.replicates:
        console.print(replicates_table(result.replicates, [goal.metric for goal in spec.objectives]))
    facts, next_commands = {}, []
    where = "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    ended = sum(record.ended for record in result.records)
    if running:
        facts["running"] = f"{ended} of {spec.total_trials} trials ended"
    elif result.interrupted:
        facts["interrupted"] = f"{ended} of {spec.total_trials} trials ended; the same command goes on"
    if stopped := [record for record in result.records if record.state == "stopped"]:
        spent = sum(record.run.images_seen or 0 for record in stopped)
        total = spec.total_trials * spec.run.train.num_images
        facts["stopped"] = f"{spent} of {total} images were spent on trials that were stopped early"
    if result.best is not None:
        best = _scores(result.best.run.scores, spec.objectives)
        facts["best"] = f"trial {result.best.number}, {best}; * marks the Pareto front"
        checkpoint = shlex.quote(str(result.best.checkpoint))
        next_commands.append(f"python -m raydis traverse {checkpoint} -o traversal.png")
    if result.unpublished is not None and result.best is not None:
        facts["unpublished"] = result.unpublished
        checkpoint = shlex.quote(str(result.best.checkpoint))
        next_commands.insert(0, f"python -m raydis models register {checkpoint} {spec.model_name}{where}")
    if result.published is not None:
        promotion = result.published.promotion
        facts["published"] = _scores(result.published.scores, spec.objectives)
        verdict = "promoted" if promotion.decision.promote else "registered, not promoted"
        facts["registry"] = f"{promotion.ref} {verdict}: {promotion.decision.reason}"
        facts["picture"] = f"{result.folder}/{Path(result.published.picture).name}"
        next_commands = [f"python -m raydis traverse {promotion.ref}{where} -o traversal.png"]
        if promotion.decision.promote and spec.promotion and f"{spec.model_name}@{spec.promotion.alias}" == SERVED:
            there = "" if storage == DEFAULT_STORAGE else f"RAYDIS_STORAGE={shlex.quote(storage)} "
            next_commands.append(f"{there}serve run serve_configs/local.yaml")
    facts["folder"] = result.folder
    if result.unwritten is None and tables:
        facts["files"] = f"trials.csv, trials.parquet, summary.json, spec.json, {STUDY_FILE}, a folder a trial"
    facts |= {"next" if row == 0 else " " * row: command for row, command in enumerate(next_commands)}
    print_facts(console, facts)


def trials_table(result: SweepResult, spec: SweepSpec) -> Table:
    """Return a table with a row for each trial and a column for each searched key."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    scores = [goal.metric for goal in spec.objectives]
    for heading in ("", "trial", *(key.rpartition(".")[2].replace("_", " ") for key in spec.search)):
        table.add_column(heading, justify="right")
    for heading in (*map(short, scores), "state", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in result.records:
        mark = "*" if record.number in result.front else ""
        label = f"{record.number} {record.control}" if record.control else str(record.number)
        settings = [brief(record.settings[key]) if key in record.settings else "" for key in spec.search]
        values = [record.value(name) for name in scores]
        numbers = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(mark, label, *settings, *numbers, record.state, duration(record.time_s))
    return table


def sweeps_table(sweeps: Sequence[StoredSweep]) -> Table:
    """Return a table with a row for each sweep: its state, its trials, and the scores of its best one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("sweep", "state", "trials", "best"):
        table.add_column(heading, no_wrap=heading != "best")
    for sweep in sweeps:
        best, metrics = sweep.result.best, [goal.metric for goal in sweep.spec.objectives]
        values = {} if best is None else {name: best.value(name) for name in metrics}
        numbers = ", ".join(f"{short(name)} {value:.3f}" for name, value in values.items() if value is not None)
        shown = "" if best is None else f"trial {best.number}, {numbers}"
        trials = f"{sweep.num_ended} of {sweep.num_ended + sweep.num_left}"
        table.add_row(sweep.result.name, sweep.state, trials, shown)
    return table


def replicates_table(rows: list[Replicates], metrics: list[str]) -> Table:
    """Return a table with the mean and standard deviation of each metric, for controls that ran with several seeds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("control, mean ± std", no_wrap=True)
    table.add_column("complete", justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(short(metric), justify="right", no_wrap=True)
    for row in rows:
        numbers = [with_spread(row.mean[metric], row.std.get(metric)) if row.mean else "" for metric in metrics]
        table.add_row(row.control, f"{row.num_complete} of {row.num_runs}", *numbers)
    return table


def _scores(scores: Scores | None, objectives: Sequence[Objective]) -> str:
    """Return the objectives' metrics as text, each with the standard deviation of its draws."""
    if scores is None or scores.status != "valid":
        return f"no scores: {scores.reason if scores else 'not evaluated'}"
    spread = scores.spread or {}
    numbers = [
        f"{short(goal.metric)} {with_spread(value, spread.get(goal.metric))}"
        for goal in objectives
        if (value := scores.values.get(goal.metric)) is not None
    ]
    return f"{', '.join(numbers)} ({scores.protocol} protocol, estimator {scores.estimator})"
