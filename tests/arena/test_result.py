"""The table and the tests of an arena: what counts, what is named as missing, and who comes first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydis.arena.folder import Sweeps
from raydis.arena.result import Entry, compare, entry_of, result_of
from raydis.arena.spec import ArenaSpec, load_arena
from raydis.arena.words import verdict, what_is_not_shown, what_is_shown
from raydis.metrics.comparison import holm, paired_test
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scores import unscored
from raydis.metrics.table import METRICS
from tests.arena.conftest import final_rows, row, summary

STUDY = Sweeps(1, (), summary([row(0, 0.4), row(1, 0.6), row(2, None)]))
NONE = Sweeps(0, (), None)


def entry(spec: ArenaSpec, name: str, scores: dict[int, float | None], study: Sweeps = STUDY) -> Entry:
    return entry_of(spec, name, study, Sweeps(1, tuple(final_rows(name, scores)), None))


def test_an_entry_holds_the_best_setting_its_runs_and_their_mean_deviation_and_worst(spec: ArenaSpec) -> None:
    found = entry(spec, "ours", {13: 0.75, 11: 0.5, 12: 0.25})
    assert found.state == "complete"
    assert found.study is not None
    assert (found.study.best, found.study.num_trials, found.study.num_ranked) == ({"method.num_units": 5}, 3, 2)
    assert found.study.best_values == {"dci_disentanglement": 0.6, "factor_vae": 0.3}
    assert (found.study.images_seen, found.study.time_s) == (3 * 640, 7.5)
    assert [run.seed for run in found.runs] == [11, 12, 13]
    assert found.column("dci_disentanglement") == [0.5, 0.25, 0.75]
    assert (found.mean("dci_disentanglement"), found.std("dci_disentanglement")) == (0.5, 0.25)
    assert (found.worst("dci_disentanglement"), found.worst("factor_vae")) == (0.25, 0.125)
    assert [run.seed for run in found.ranked_runs(spec.objectives)] == [13, 11, 12]


def test_a_run_without_scores_is_named_and_never_a_zero(spec: ArenaSpec) -> None:
    found = entry(spec, "ours", {11: 0.5, 12: None, 13: 0.7})
    assert found.state == "incomplete"
    assert found.mean("dci_disentanglement") == pytest.approx(0.6)
    assert found.reasons == ["FitError: the loss became nan"]
    assert list(found.scored()) == [11, 13]


def test_units_that_are_not_ready_say_so(spec: ArenaSpec) -> None:
    late = unscored("not_ready", "no unit is open yet", protocol=SEARCH, num_images=0, data_fingerprint="-").to_dict()
    rows = [each | {"scores": late, "state": "failed", "reason": "no unit is open yet"}
            for each in final_rows("ours", {11: None, 12: None, 13: None})]  # fmt: skip
    found = entry_of(spec, "ours", STUDY, Sweeps(1, tuple(rows), None))
    assert found.state == "failed"
    assert found.reasons == ["not ready: no unit is open yet"]
    assert (found.mean("factor_vae"), found.std("factor_vae"), found.worst("factor_vae")) == (None, None, None)


@pytest.mark.parametrize(
    ("study", "scores", "state"),
    [
        (NONE, {}, "pending"),
        (STUDY, {}, "pending"),
        (STUDY, {11: 0.5, 12: 0.5}, "pending"),
        (Sweeps(1, (), summary([row(0, None)])), {}, "failed"),
        (STUDY, {11: None, 12: None, 13: None}, "failed"),
        (STUDY, {11: None, 12: 0.5, 13: 0.5}, "incomplete"),
        (STUDY, {11: 0.5, 12: 0.5, 13: 0.5}, "complete"),
    ],
)
def test_the_state_of_an_entrant(spec: ArenaSpec, study: Sweeps, scores: dict[int, Any], state: str) -> None:
    assert entry(spec, "ours", scores, study).state == state


def test_entrants_stand_in_the_order_of_their_mean_and_behind_them_those_with_missing_runs(spec: ArenaSpec) -> None:
    entries = [
        entry(spec, "ours", {11: 0.1, 12: 0.2, 13: 0.3}),
        entry(spec, "rival", {11: 0.9, 12: None, 13: 0.9}),
        entry(spec, "closed", {11: 0.4, 12: 0.4, 13: 0.4}),
        Entry("dead", "failed", None, ()),
    ]
    found = result_of(spec, entries, name="duel", folder="/runs/arenas/duel")
    assert [each.name for each in found.entries] == ["closed", "ours", "rival", "dead"]
    assert not found.interrupted


OURS = {11: 0.80, 12: 0.82, 13: 0.81}
FAR = {11: 0.20, 12: 0.23, 13: 0.21}
NEAR = {11: 0.79, 12: 0.83, 13: 0.80}


def test_the_focus_is_tested_against_each_other_entrant_and_corrected_for_all_tests(spec: ArenaSpec) -> None:
    entries = [entry(spec, "closed", NEAR), entry(spec, "ours", OURS), entry(spec, "rival", FAR)]
    found = compare(spec, entries)
    assert [(each.first, each.second, each.metric) for each in found] == [
        ("ours", "closed", "dci_disentanglement"),
        ("ours", "rival", "dci_disentanglement"),
        ("ours", "closed", "factor_vae"),
        ("ours", "rival", "factor_vae"),
    ]
    alone = [paired_test(list(OURS.values()), list(each.values())) for each in (NEAR, FAR)]
    assert found[0].test == alone[0]
    assert found[1].test == alone[1]
    p_values = [each.test.t_p_value for each in found if each.test and each.test.t_p_value is not None]
    assert [each.corrected_p_value for each in found] == holm(p_values)
    assert [verdict(each) for each in found] == ["undecided", "better", "undecided", "better"]
    turned = compare(with_focus(spec, "rival"), entries)
    assert [(each.second, verdict(each)) for each in turned[:2]] == [("closed", "worse"), ("ours", "worse")]


def with_focus(spec: ArenaSpec, focus: str | None) -> ArenaSpec:
    return spec.model_copy(update={"focus": focus})


def test_without_a_focus_all_pairs_are_tested(spec: ArenaSpec) -> None:
    entries = [entry(spec, "closed", NEAR), entry(spec, "ours", OURS), entry(spec, "rival", FAR)]
    found = compare(with_focus(spec, None), entries)
    assert {(each.first, each.second) for each in found} == {("closed", "ours"), ("closed", "rival"), ("ours", "rival")}
    assert len(found) == 6


def test_only_common_seeds_make_pairs_and_one_is_too_few(spec: ArenaSpec) -> None:
    rival = entry(spec, "rival", {11: 0.2, 12: None, 13: 0.3})
    (first, _) = compare(spec, [entry(spec, "ours", OURS), rival])
    assert first.test == paired_test([0.80, 0.81], [0.2, 0.3])
    single = entry(spec, "rival", {11: 0.2, 12: None, 13: None})
    assert [(each.test, each.corrected_p_value) for each in compare(spec, [entry(spec, "ours", OURS), single])] == [
        (None, None),
        (None, None),
    ]
    assert verdict(compare(spec, [entry(spec, "ours", OURS), single])[0]) == "not tested"
    dead = Entry("rival", "failed", None, ())
    assert compare(spec, [entry(spec, "ours", OURS), dead]) == ()


def test_the_sentences_say_who_leads_what_is_shown_and_what_cannot_be(spec: ArenaSpec) -> None:
    entries = [entry(spec, "closed", NEAR), entry(spec, "ours", OURS), entry(spec, "rival", FAR)]
    result = result_of(spec, entries, name="duel", folder="-")
    first, _ = what_is_shown(result, spec)
    assert first == (
        "By DCI disentanglement, Ours has the best mean, 0.810. Ours is better than rival. Between Ours and closed, "
        "no difference is shown."
    )
    limits = what_is_not_shown(result, spec)
    assert "with 3 pairs its p value cannot fall below 0.25" in limits
    assert "8 seeds or more could" in limits  # 4 tests: 2^-7 is the first below 0.05 / 4
    many = spec.model_copy(update={"seeds": tuple(range(8))})
    assert "cannot show any difference" not in what_is_not_shown(result, many)
    nothing = result_of(spec, [Entry(name, "failed", None, ()) for name in spec.entrants], name="duel", folder="-")
    assert what_is_shown(nothing, spec) == ["No entrant has valid scores."]
    assert what_is_not_shown(nothing, spec).startswith("Nothing was tested")


def test_a_leader_whose_runs_have_not_all_scores_is_said_to_be_one(spec: ArenaSpec) -> None:
    entries = [
        entry(spec, "closed", NEAR),
        entry(spec, "ours", {11: 0.95, 12: None, 13: 0.97}),
        entry(spec, "rival", FAR),
    ]
    first, _ = what_is_shown(result_of(spec, entries, name="duel", folder="-"), spec)
    assert first.startswith(
        "By DCI disentanglement, Ours has the best mean, 0.960, but only over 2 of 3 seeds: without valid scores for "
        "the others, it may not lead. "
    )


def test_a_metric_that_is_better_when_lower_turns_worst_and_verdict(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = METRICS["factor_vae"]
    lower = dataclasses.replace(metric, numbers=(dataclasses.replace(metric.numbers[0], direction="min"),))
    monkeypatch.setitem(METRICS, "factor_vae", lower)
    spec = load_arena(path, ["objectives=[{metric: factor_vae}]"])
    ours, rival = entry(spec, "ours", OURS), entry(spec, "rival", FAR)
    assert ours.worst("factor_vae") == pytest.approx(0.41)
    assert [each.name for each in result_of(spec, [ours, rival], name="duel", folder="-").entries] == ["rival", "ours"]
    (found,) = compare(spec, [ours, rival])
    assert verdict(found) == "worse"
    assert np.isclose(found.test.difference if found.test else 0.0, 0.2983333333333333)
