"""The sentences of an arena's report: what the tests show, and what so few seeds cannot show."""

from __future__ import annotations

from typing import Literal

from raydis.arena.result import ArenaResult, Comparison
from raydis.arena.spec import ArenaSpec
from raydis.metrics.comparison import LEVEL, pairs_needed, smallest_exact_p_value
from raydis.metrics.table import number_named

Verdict = Literal["better", "worse", "undecided", "not tested"]  # of the first of two entrants
TESTED: tuple[Verdict, ...] = ("better", "worse", "undecided")


def verdict(comparison: Comparison) -> Verdict:
    """Return what a test shows of its first entrant."""
    if comparison.test is None or comparison.corrected_p_value is None:
        return "not tested"
    if comparison.corrected_p_value > LEVEL:
        return "undecided"
    gain = comparison.test.difference > 0.0
    return "better" if gain == (number_named(comparison.metric).direction == "max") else "worse"


def what_is_shown(result: ArenaResult, spec: ArenaSpec) -> list[str]:
    """Return one sentence for each objective: who leads, and what the tests show."""
    sentences: list[str] = []
    for goal in spec.objectives:
        scored = [entry for entry in result.entries if entry.mean(goal.metric) is not None]
        if not scored:
            return ["No entrant has valid scores."]
        # The mean of the runs that did not fail may be too good, so it can lead only if no entrant is complete.
        led = [entry for entry in scored if entry.state == "complete"] or scored
        means = {entry.name: mean for entry in led if (mean := entry.mean(goal.metric)) is not None}
        pick = max if number_named(goal.metric).direction == "max" else min
        leader = pick(means, key=lambda name: means[name])
        title = number_named(goal.metric).title
        text = f"By {title}, {spec.title(leader)} has the best mean, {means[leader]:.3f}."
        if led != scored:
            left_out = _listed([spec.title(entry.name) for entry in scored if entry not in led])
            text += f" Left out of this comparison: {left_out}, of which some runs have no score."
        tests = [each for each in result.comparisons if each.metric == goal.metric]
        if spec.focus is not None:
            by = {word: [spec.title(each.second) for each in tests if verdict(each) == word] for word in TESTED}
            said = [f"{word} than {_listed(names)}" for word, names in by.items() if names and word != "undecided"]
            focus = spec.title(spec.focus)
            text += f" {focus} is {' and '.join(said)}." if said else ""
            text += (
                f" Between {focus} and {_listed(names)}, no difference is shown." if (names := by["undecided"]) else ""
            )
        elif tests:
            shown = sum(verdict(each) in ("better", "worse") for each in tests)
            text += f" {shown} of {len(tests)} pairs differ."
        sentences.append(text)
    return sentences


def what_is_not_shown(result: ArenaResult, spec: ArenaSpec) -> str:
    """Return what this number of seeds can show, and what it cannot."""
    n, tests = len(spec.seeds), result.num_tests
    if not tests:
        return "Nothing was tested: fewer than two entrants have valid scores for the same seeds."
    least, needed = smallest_exact_p_value(n), pairs_needed(tests)
    text = (
        f"Runs with the same seed are paired. Student's paired t test takes the differences of the {n} pairs as "
        f"normally distributed, which {n} pairs cannot confirm; its p values are corrected for the number of tests, "
        f"{tests}, by Holm's procedure. The intervals are of single tests. "
    )
    if n < needed:
        return text + (
            f"The exact sign-flip test needs no such assumption, but with {n} pairs its p value cannot fall below "
            f"{least:.3g}: without the assumption, these seeds cannot show any difference at the level of {LEVEL:g}, "
            f"however large. {needed} seeds or more could. "
            "An undecided test does not show that two methods are equally good."
        )
    return text + (
        "The exact sign-flip test needs no such assumption; its p values are not corrected. An undecided test does not "
        "show that two methods are equally good."
    )


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
