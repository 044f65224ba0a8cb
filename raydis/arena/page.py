"""Prepare the report of an arena: one HTML page that opens offline. `templates/arena.html` lays it out."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from raydis.arena.folder import Pretrained
from raydis.arena.look import Look, Strip
from raydis.arena.quoted import CAVEATS, GENERAL, QUOTED, Quoted
from raydis.arena.result import ArenaResult, Entry
from raydis.arena.spec import ArenaSpec
from raydis.arena.tables import Table, cost_table, scores_table, settings_table, tests_tables
from raydis.arena.words import what_is_not_shown, what_is_shown
from raydis.metrics.scores import Scores
from raydis.metrics.standing import describe, with_spread
from raydis.metrics.table import Number, number_named
from raydis.report.plots import draw_curves
from raydis.report.template import render
from raydis.version import __version__


@dataclass(frozen=True)
class Dots:
    """A score of one entrant: its text, and where its runs and their mean lie on the axis, as shares in [0, 1]."""

    text: str
    worst: str
    dots: tuple[float, ...]
    mean: float | None


@dataclass(frozen=True)
class Row:
    """One row of the main table: an entrant with its scores by objective, or the reason why it has none."""

    title: str
    note: str
    state: str
    seeds: str
    cells: tuple[Dots, ...]
    reason: str


@dataclass(frozen=True)
class Gallery:
    """The traversals of one entrant: a heading and rows for its best and its worst run; equal if there is one only."""

    title: str
    panels: tuple[tuple[str, tuple[Strip, ...]], ...]
    note: str


@dataclass(frozen=True)
class ArenaPage:
    """The data that `templates/arena.html` shows. Tables are pairs of a head and rows of cells.

    An objective is its title and the ends of its axis.
    """

    title: str
    facts: str
    shown: Sequence[str]
    not_shown: str
    objectives: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    tests: Sequence[tuple[str, Table]]
    all_scores: Table
    cost: Table
    curves: Sequence[tuple[str, bytes]]
    galleries: Sequence[Gallery]
    settings: Table
    quoted: Sequence[Quoted]
    caveats: Sequence[str]
    terms: Sequence[str]
    command: str


def render_page(result: ArenaResult, spec: ArenaSpec, looks: Mapping[str, Look], command: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        looks: what the checkpoints of the final runs say, by checkpoint.
        command: the command that began the arena, and that continues it.
    """
    data = next(iter(spec.entrants.values())).run.data
    estimator = _estimator(result)
    page = ArenaPage(
        title=result.name,
        facts=f"{len(spec.entrants)} methods on {data.name}, {data.image_size} px · {spec.num_images:,} images a run · "
        f"{spec.num_trials} trials a study · {len(spec.seeds)} fresh seeds · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · "
        f"raydis {__version__}",
        shown=what_is_shown(result, spec),
        not_shown=what_is_not_shown(result, spec),
        objectives=[
            (number.title, f"{number.low:g} to {number.high:g}")
            for number in (number_named(goal.metric) for goal in spec.objectives)
        ],
        rows=[_row(entry, spec) for entry in result.entries],
        tests=tests_tables(result, spec),
        all_scores=scores_table(result, spec),
        cost=cost_table(result, spec, looks),
        curves=_curves(result, spec, looks),
        galleries=[found for entry in result.entries if (found := _gallery(entry, spec, looks))],
        settings=settings_table(result, spec),
        quoted=QUOTED.get(data.name, ()),
        caveats=[text for text in (CAVEATS.get(data.name, ""), GENERAL) if text],
        terms=_terms(spec, estimator),
        command=shlex.join(command),
    )
    return render("arena.html", page=page)


def _estimator(result: ArenaResult) -> str:
    """Return DCI's classifier in the scores of the final runs."""
    found = {run.scores.estimator for entry in result.entries for run in entry.runs if run.scores}
    return ", ".join(sorted(found)) or "none"


def _share(number: Number, value: float) -> float:
    return min(max((value - number.low) / (number.high - number.low), 0.0), 1.0)


def _row(entry: Entry, spec: ArenaSpec) -> Row:
    cells: list[Dots] = []
    for goal in spec.objectives:
        number, mean, worst = number_named(goal.metric), entry.mean(goal.metric), entry.worst(goal.metric)
        if mean is None or worst is None:
            continue
        dots = tuple(_share(number, value) for value in entry.column(goal.metric))
        text = with_spread(mean, entry.std(goal.metric))
        cells.append(Dots(text, f"{worst:.3f}", dots, _share(number, mean)))
    return Row(
        title=spec.title(entry.name),
        note=spec.entrants[entry.name].note,
        state=entry.state,
        seeds=f"{len(entry.scored())} of {len(spec.seeds)}",
        cells=tuple(cells),
        reason="; ".join(entry.reasons),
    )


def _curves(result: ArenaResult, spec: ArenaSpec, looks: Mapping[str, Look]) -> list[tuple[str, bytes]]:
    """Return a picture for each objective whose axis is [0, 1]: title and WebP picture."""
    pictures: list[tuple[str, bytes]] = []
    for goal in spec.objectives:
        number = number_named(goal.metric)
        if (number.low, number.high) != (0.0, 1.0):
            continue
        panels: dict[str, dict[str, np.ndarray]] = {"images seen": {}, "CPU-seconds of training": {}}
        for entry in result.entries:
            runs = [_points(looks[str(run.checkpoint)].curve, goal.metric, entry.pretrained) for run in entry.runs
                    if str(run.checkpoint) in looks]  # fmt: skip
            length = min((len(run) for run in runs), default=0)
            if not length:
                continue
            points = np.array([run[-length:] for run in runs], dtype=np.float64)  # (R, P, 3)
            panels["images seen"][spec.title(entry.name)] = points[..., [0, 2]]
            panels["CPU-seconds of training"][spec.title(entry.name)] = points[..., [1, 2]]
        if panels["images seen"]:
            drawn = draw_curves(panels, score=number.title, log=["CPU-seconds of training"])
            pictures.append((number.title, drawn))
    return pictures


def _points(
    curve: Sequence[Mapping[str, Any]], metric: str, before: Pretrained | None
) -> list[tuple[float, float, float]]:
    """Return the points of a learning curve that can be compared: images seen, CPU-seconds and the score.

    A pre-training comes before the first point. The last point has the scores of the final, which may be those of
    another protocol or classifier than the others.
    """
    scored = [(point, Scores.from_dict(point["scores"])) for point in curve]
    images, cpu_s = (before.images_seen, before.cpu_s or 0.0) if before else (0, 0.0)
    terms = [(scores.estimator, scores.num_images) for _, scores in scored]
    return [
        (point["images_seen"] + images, point["cpu_s"] + cpu_s, scores.values[metric])
        for (point, scores), own in zip(scored, terms, strict=True)
        if metric in scores.values and own == terms[0] and point.get("cpu_s") is not None
    ]


def _gallery(entry: Entry, spec: ArenaSpec, looks: Mapping[str, Look]) -> Gallery | None:
    ranked = [run for run in entry.ranked_runs(spec.objectives) if str(run.checkpoint) in looks]
    if not ranked:
        return None
    chosen = {"best": ranked[0], "worst": ranked[-1]} if len(ranked) > 1 else {"only": ranked[0]}
    panels, notes = [], list[str]()
    for word, run in chosen.items():
        look = looks[str(run.checkpoint)]
        values = ", ".join(
            f"{number_named(goal.metric).short} {run.values[goal.metric]:.3f}" for goal in spec.objectives
        )
        panels.append((f"{word} seed, {run.seed}: {values}", look.strips))
        notes += [look.unseen] if look.unseen else []
    hidden = max(looks[str(run.checkpoint)].num_units - len(strips) for run, (_, strips) in
                 zip(chosen.values(), panels, strict=True))  # fmt: skip
    if hidden > 0 and not notes:
        notes.append(f"{hidden} further units are not shown")
    return Gallery(spec.title(entry.name), tuple(panels), "; ".join(dict.fromkeys(notes)))


def _terms(spec: ArenaSpec, estimator: str) -> list[str]:
    first = next(iter(spec.entrants.values())).run
    borrowers = [spec.title(name) for name, entrant in spec.entrants.items() if entrant.pretraining is not None]
    shared = [
        f"All runs of {', '.join(borrowers)} borrow a model that was trained once. Its images and times come first in "
        "the costs and curves, and count in the budget. Its seed is the same in all runs, so the deviation over the "
        "final seeds does not contain what another pre-training would change."
    ]
    return [
        f"Every run sees {spec.num_images:,} images, unless its method has a closed form or is fitted in one pass. "
        f"Every study has {spec.num_trials} trials, of which the first is the method's own setting; a method with "
        "nothing to search has this trial only. Equal images are not equal time: see the costs.",
        f"Studies train with the seed of each entrant's run, and rank trials by the {describe(spec.objectives)} "
        f"({first.evaluation.protocol} protocol).",
        f"Finals train with the seeds {', '.join(map(str, spec.seeds))}, which no study has used, and are scored by "
        f"the published protocol (estimator {estimator}) on draws of the metrics that no study has used. Nothing was "
        "chosen by these scores. The images are those of the training, as in the published evaluations.",
        *(shared if borrowers else []),
        f"A score varies with the processor as with the seed. This report: Python {platform.python_version()}, "
        f"{platform.machine()}, {platform.system()}.",
    ]
