"""The tables of an arena's report, as pairs of a head and rows of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raydis.arena.look import Look
from raydis.arena.result import ArenaResult, Comparison, Entry, FinalRun
from raydis.arena.spec import ArenaSpec
from raydis.arena.words import verdict
from raydis.metrics.standing import with_spread
from raydis.metrics.table import number_named
from raydis.sweep.words import brief, duration

Table = tuple[list[str], list[list[str]]]


def tests_tables(result: ArenaResult, spec: ArenaSpec) -> list[tuple[str, Table]]:
    """Return a table of paired tests for each objective, with its title; each row ends with the verdict."""
    head = ["compared", "mean difference", "95 % interval", "p (t, Holm)", "p (exact)", ""]
    found = []
    for goal in spec.objectives:
        rows = [_test_row(each, spec) for each in result.comparisons if each.metric == goal.metric]
        if rows:
            found.append((number_named(goal.metric).title, (head, rows)))
    return found


def _test_row(comparison: Comparison, spec: ArenaSpec) -> list[str]:
    names, test = f"{spec.title(comparison.first)} – {spec.title(comparison.second)}", comparison.test
    if test is None:
        return [names, "–", "–", "–", "–", "not tested: fewer than two common seeds"]
    corrected = "undefined" if comparison.corrected_p_value is None else _p_value(comparison.corrected_p_value)
    interval, exact = f"{test.low:+.3f} to {test.high:+.3f}", _p_value(test.exact_p_value)
    return [names, f"{test.difference:+.3f}", interval, corrected, exact, verdict(comparison)]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def scores_table(result: ArenaResult, spec: ArenaSpec) -> Table:
    """Return every computed number, as mean and deviation over the final runs."""
    head = ["method", *(number.title for number in result.computed.values())]
    rows = [
        [spec.title(entry.name), *(_mean_text(entry, name) for name in result.computed)]
        for entry in result.entries
        if entry.scored()
    ]
    return head, rows


def _mean_text(entry: Entry, metric: str) -> str:
    mean = entry.mean(metric)
    return "–" if mean is None else with_spread(mean, entry.std(metric))


def cost_table(result: ArenaResult, spec: ArenaSpec, looks: Mapping[str, Look]) -> Table:
    """Return what the final runs and the study of each entrant cost."""
    head = ["method", "parameters", "images a run", "training, wall-clock", "training, CPU", "whole run"]
    head.append("study: images, time of its runs")
    rows: list[list[str]] = []
    for entry in result.entries:
        seen = [looks[str(run.checkpoint)] for run in entry.runs if str(run.checkpoint) in looks]
        runs = [run for run in entry.runs if str(run.checkpoint) in looks]
        study, before = entry.study, entry.pretrained
        rows.append(
            [
                spec.title(entry.name),
                f"{seen[0].num_parameters:,}" if seen else "–",
                _before(before and f"{before.images_seen:,}") + _mean_images(runs),
                _before(before and _mean_time([before.train_s])) + _mean_time([look.train_s for look in seen]),
                _before(before and _mean_time([before.cpu_s])) + _mean_time([look.cpu_s for look in seen]),
                _mean_time([run.time_s for run in runs]),
                f"{study.images_seen:,} in {duration(study.time_s)}" if study else "–",
            ]
        )
    return head, rows


def _before(text: str | None) -> str:
    """Return what a pre-training cost, in front of what a run cost."""
    return f"{text} + " if text else ""


def _mean_images(runs: Sequence[FinalRun]) -> str:
    return f"{round(np.mean([run.images_seen for run in runs])):,}" if runs else "–"


def _mean_time(values: Sequence[float | None]) -> str:
    """Return the mean of known times as text."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.1f} s" if known and len(known) == len(values) else "–"


def settings_table(result: ArenaResult, spec: ArenaSpec) -> Table:
    """Return the setting that each study chose, and its scores in the study and in the final."""
    titles = [number_named(goal.metric).short for goal in spec.objectives]
    head = ["method", "trials", "setting that the study chose", *(f"{title}: study → final" for title in titles)]
    rows: list[list[str]] = []
    for entry in result.entries:
        study = entry.study
        if study is None:
            rows.append([spec.title(entry.name), "–", "the study has not ended", *("–" for _ in titles)])
            continue
        chosen = "none: " + "; ".join(study.reasons) if study.best is None else _setting(study.best)
        gaps = [
            f"{study.best_values[goal.metric]:.3f} → {mean:.3f}"
            if goal.metric in study.best_values and (mean := entry.mean(goal.metric)) is not None
            else "–"
            for goal in spec.objectives
        ]
        rows.append([spec.title(entry.name), f"{study.num_ranked} of {study.num_trials} scored", chosen, *gaps])
    return head, rows


def _setting(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {brief(value)}" for key, value in settings.items()) or "its own (nothing to search)"
