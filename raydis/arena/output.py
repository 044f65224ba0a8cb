"""Write the results of an arena: report.html, results.json, results.csv and results.md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from raydis.arena.look import Look
from raydis.arena.page import render_page
from raydis.arena.result import ArenaResult, Entry
from raydis.arena.spec import ArenaSpec
from raydis.evaluation.formats import as_markdown
from raydis.metrics.standing import with_spread
from raydis.metrics.table import number_named
from raydis.store import Store

REPORT_FILE = "report.html"
RESULT_FILES = (REPORT_FILE, "results.json", "results.csv", "results.md")


def write_results(
    store: Store, key: str, result: ArenaResult, spec: ArenaSpec, looks: Mapping[str, Look], command: Sequence[str]
) -> None:
    """Write all files of a result into the arena's folder; `looks` and `command` as in `render_page`."""
    page = render_page(result, spec, looks, command)
    texts = (
        page,
        json.dumps(_to_json(result, looks), indent=2),
        to_csv(result, looks),
        to_markdown(result, spec, looks),
    )
    for name, text in zip(RESULT_FILES, texts, strict=True):
        store.write(f"{key}/{name}", text.encode())


def to_markdown(result: ArenaResult, spec: ArenaSpec, looks: Mapping[str, Look]) -> str:
    """Return the table of an arena for a page: scores with deviation and worst seed, and what a run costs."""
    goals = [(goal.metric, number_named(goal.metric).title) for goal in spec.objectives]
    head = ["method", "seeds", *(part for _, title in goals for part in (title, "worst")), "parameters", "CPU-s a run"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for entry in result.entries:
        cells = [as_markdown(spec.title(entry.name)), f"{len(entry.scored())} of {len(spec.seeds)}"]
        for metric, _ in goals:
            mean, worst = entry.mean(metric), entry.worst(metric)
            cells += [entry.state, ""] if mean is None or worst is None else [
                with_spread(mean, entry.std(metric)), f"{worst:.3f}"
            ]  # fmt: skip
        seen = [looks[str(run.checkpoint)] for run in entry.runs if str(run.checkpoint) in looks]
        times = [look.cpu_s for look in seen if look.cpu_s is not None]
        cells += [f"{seen[0].num_parameters:,}" if seen else "", f"{np.mean(times):.1f}" if times else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_csv(result: ArenaResult, looks: Mapping[str, Look]) -> str:
    """Return a table with a row for each final run."""
    buffer = io.StringIO()
    costs = ("num_parameters", "train_s", "cpu_s")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["entrant", "seed", "reason", *result.computed, "images_seen", "time_s", *costs, "checkpoint"])
    for entry in result.entries:
        for run in entry.runs:
            look = looks.get(str(run.checkpoint))
            cost = [getattr(look, name) if look else None for name in costs]
            scores = [run.values.get(name) for name in result.computed]
            writer.writerow(
                [entry.name, run.seed, run.reason, *scores, run.images_seen, run.time_s, *cost, run.checkpoint]
            )
    return buffer.getvalue()


def _to_json(result: ArenaResult, looks: Mapping[str, Look]) -> dict[str, Any]:
    return {
        "name": result.name,
        "folder": result.folder,
        "num_tests": result.num_tests,
        "entrants": [_entry(entry, looks) for entry in result.entries],
        "comparisons": [asdict(comparison) for comparison in result.comparisons],
    }


def _entry(entry: Entry, looks: Mapping[str, Look]) -> dict[str, Any]:
    found: dict[str, Any] = asdict(entry) | {"reasons": entry.reasons}
    for run, row in zip(entry.runs, found["runs"], strict=True):
        look = looks.get(str(run.checkpoint))
        for name in ("num_parameters", "train_s", "cpu_s"):
            row[name] = getattr(look, name) if look else None
        row["curve"] = list(look.curve) if look else []
    return found
