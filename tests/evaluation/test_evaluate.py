"""`raydis.evaluate`: numbers known beforehand, intervals, several runs, and no framework at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import raydis
from raydis.errors import MetricError
from raydis.evaluation.agreement import NOTE
from raydis.evaluation.draws import Progress
from raydis.evaluation.evaluate import _chosen
from raydis.evaluation.inputs import check_codes, check_factors
from raydis.evaluation.intervals import around_mean
from raydis.evaluation.result import Evaluation, by_importance
from raydis.metrics.mig import mig
from raydis.metrics.protocol import SEARCH
from raydis.metrics.representation import all_scalars, per_unit_pca
from raydis.metrics.scoring import derived_seed, measure, score
from raydis.metrics.table import METRICS
from raydis.metrics.udr import udr
from tests.evaluation.conftest import grid

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"metrics": ("mig", "dci"), "estimator": "tree"}
Table = tuple[NDArray[np.float64], NDArray[np.int64]]


def test_the_numbers_are_those_of_the_metrics_at_this_seed(good: Table) -> None:
    found = raydis.evaluate(*good, num_draws=1, seed=5, **QUICK)
    protocol = replace(SEARCH, estimator="tree")
    for name in ("dci", "mig"):
        expected = measure(name, per_unit_pca(good[0]), good[1], protocol=protocol, seed=5)
        assert {number: found[number] for number in expected.values} == expected.values
    assert list(found.values) == [number.name for name in ("dci", "mig") for number in METRICS[name].numbers]
    assert (found.intervals, found.num_draws, found.estimator, found.protocol) == (None, 1, "tree", "search")
    assert all(each.low is None and each.spread is None for each in found.estimates)


def test_on_a_complete_grid_the_draws_are_those_of_scores(good: Table) -> None:
    found = raydis.evaluate(*good, num_draws=3, estimator="tree")
    scores = score(*good, protocol=SEARCH, estimator="tree", data_fingerprint="", num_draws=3)
    assert found.intervals == "draws"
    assert {name: found[name] for name in scores.values} == scores.values
    others = [
        score(*good, protocol=SEARCH, estimator="tree", data_fingerprint="", num_draws=1, seed=derived_seed(0, name))
        for name in ("draw 2", "draw 3")
    ]
    for each in found.estimates:
        expected = np.std([scores.values[each.name] for scores in others], ddof=1)
        assert each.spread == pytest.approx(expected, abs=1e-15)
    assert found.sizes.keys() >= scores.sizes.keys()


def test_intervals_surround_the_value_within_the_range(good: Table) -> None:
    found = raydis.evaluate(*good, num_draws=4, confidence=0.8, **QUICK)
    for each in found.estimates:
        assert each.value is not None
        assert each.low is not None
        assert each.high is not None
        assert each.number.low <= each.low <= each.value <= each.high <= each.number.high
    wider = raydis.evaluate(*good, num_draws=4, confidence=0.99, **QUICK)
    assert all(a.low >= b.low and a.high <= b.high for a, b in zip(found.estimates, wider.estimates, strict=True))  # pyright: ignore[reportOptionalOperand]


def test_rows_that_are_no_grid_are_scored_with_a_bootstrap(scattered: Table) -> None:
    found = raydis.evaluate(*scattered, num_draws=3, estimator="tree", metrics=["mig", "factor_vae"])
    assert found.intervals == "rows"
    assert 0.0 < found["factor_vae"] <= 1.0  # which fixes one factor, and needs no grid for it
    only_draws = raydis.evaluate(*scattered, num_draws=3, intervals="draws", metrics=["mig"])
    assert only_draws.intervals == "draws"
    assert only_draws["mig"] == found["mig"]


def test_the_bootstrap_spreads_as_independent_tables_do_and_the_draws_alone_do_not() -> None:
    """For few rows, MIG's own samples hide the chance in the rows."""

    def table(seed: int) -> Table:
        rng = np.random.default_rng(seed)
        factors = np.stack([rng.integers(4, size=300), rng.integers(3, size=300)], axis=1)
        return factors + rng.normal(size=factors.shape), factors

    of_tables = np.std([raydis.evaluate(*table(seed), metrics=["mig"], num_draws=1)["mig"] for seed in range(40)])
    spreads = {
        kind: np.mean(
            [
                raydis.evaluate(*table(seed), metrics=["mig"], num_draws=15, intervals=kind).estimates[0].spread
                for seed in range(4)
            ]
        )
        for kind in ("rows", "draws")
    }
    # 40 tables and 4 x 14 draws: a standard deviation is known to about 11 %, so a factor of 1.6 is four of them.
    assert of_tables / 1.6 < spreads["rows"] < 1.6 * of_tables
    assert spreads["draws"] < 0.5 * of_tables


def test_processes_do_not_change_a_number(scattered: Table) -> None:
    one, two = (raydis.evaluate(*scattered, num_draws=3, num_jobs=jobs, **QUICK) for jobs in (1, 2))
    assert one == two


def test_progress_names_what_is_computed(good: Table) -> None:
    told: list[Progress] = []
    raydis.evaluate([good[0], good[0]], good[1], num_draws=3, on_progress=told.append, **QUICK)
    assert [each.done for each in told] == list(range(12))
    assert {each.total for each in told} == {12}
    assert told[0].doing == "dci of run 0, draw 1 of 3"
    assert told[-1].doing == "mig of run 1, draw 3 of 3"
    told.clear()
    raydis.evaluate(*good, num_draws=3, num_jobs=2, on_progress=told.append, **QUICK)
    assert [(each.done, each.total) for each in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_metrics_of_vectors_see_whole_vectors(good: Table) -> None:
    """A unit whose vector holds a factor in its smaller entry knows it, though its principal component does not."""
    codes, factors = good
    rng = np.random.default_rng(2)
    vectors = np.stack([5 * rng.normal(size=codes.shape), codes], axis=2)
    name = next(name for name, metric in METRICS.items() if "vectors" in metric.needs)
    whole = raydis.evaluate(vectors, factors, metrics=[name], num_draws=1, estimator="tree")
    scalars, groups = all_scalars(vectors, [2] * 4)
    expected = measure(name, scalars, factors, protocol=replace(SEARCH, estimator="tree"), seed=0, groups=groups)
    assert whole.values == expected.values


def test_vectors_of_unequal_widths_are_scored_without_the_zeros_beyond_them(good: Table) -> None:
    codes, factors = good
    vectors = np.zeros((len(codes), 2, 3))
    vectors[:, 0], vectors[:, 1, 0] = codes[:, :3], codes[:, 3]
    options: dict[str, Any] = {"metrics": ["grouped_dci"], "num_draws": 1, "estimator": "tree"}
    found = raydis.evaluate(vectors, factors, unit_widths=[3, 1], **options)
    scalars, groups = all_scalars(vectors, [3, 1])
    expected = measure(
        "grouped_dci", scalars, factors, protocol=replace(SEARCH, estimator="tree"), seed=0, groups=groups
    )
    assert found.values == expected.values
    assert raydis.evaluate(vectors, factors, **options).values == expected.values  # zeros at the ends are found
    both = raydis.evaluate({"a": vectors, "b": codes}, factors, unit_widths={"a": (3, 1)}, **options)
    assert {each.name: each.value for each in both.runs[0].estimates} == found.values
    with pytest.raises(
        MetricError, match=r"codes: unit_widths \[3\] do not fit codes of shape \(144, 2, 3\): give each"
    ):
        raydis.evaluate(vectors, factors, unit_widths=[3], **options)
    with pytest.raises(MetricError, match="codes: unit 0 has values beyond its width 2: correct unit_widths"):
        raydis.evaluate(vectors, factors, unit_widths=[2, 1], **options)


def test_all_metrics_of_vectors_include_those_that_see_whole_vectors(good: Table) -> None:
    chosen, _ = _chosen("all", SEARCH, check_codes(good[0][..., None], num_rows=None), check_factors(good[1]))
    assert {name for name, metric in METRICS.items() if "vectors" in metric.needs} < set(chosen)
    scalars, _ = _chosen("all", SEARCH, check_codes(good[0], num_rows=None), check_factors(good[1]))
    assert not {name for name in scalars if "vectors" in METRICS[name].needs}


# ---- independent components


def test_rotated_units_are_scored_as_the_components_that_they_mix() -> None:
    factors = grid(repeats=8)
    units = (factors + 0.05 * np.random.default_rng(0).normal(size=factors.shape)) @ np.array(
        [[2.0, -1.0, 2.0], [2.0, 2.0, -1.0], [-1.0, 2.0, 2.0]]
    )
    options: dict[str, Any] = {"metrics": ["mig"], "num_draws": 1}
    assert raydis.evaluate(units, factors, **options)["mig"] < 0.4
    found = raydis.evaluate(np.column_stack([units, units[:, 0] * 2]), factors, ica=True, **options)
    assert found["mig"] > 0.95
    assert found.runs[0].unit_names == ("component 0", "component 1", "component 2")
    assert "codes: 3 independent components of its 4 units are scored in their place" in found.notes


def test_components_that_ica_cannot_find_are_said_to_be_such() -> None:
    factors = grid(repeats=60)
    units = np.random.default_rng(0).normal(size=factors.shape)
    found = raydis.evaluate(units, factors, ica=True, metrics=["mig"], num_draws=1)
    assert any("3 of them look Gaussian" in note for note in found.notes)


# ---- several runs


def test_udr_needs_several_runs_and_no_factors(good: Table) -> None:
    codes, factors = good
    runs = [codes, codes[:, ::-1] * [1, -2, 3, 1], np.random.default_rng(1).normal(size=codes.shape)]
    found = raydis.evaluate(runs, metrics=["udr"], seed=3)
    expected = udr([run - run.mean(axis=0) for run in runs], rng=np.random.default_rng(3)).scores
    assert expected is not None
    assert [run.estimates[0].value for run in found.runs] == pytest.approx(expected.tolist(), abs=1e-12)
    assert found["udr"] == pytest.approx(expected.mean(), abs=1e-12)
    assert (found.intervals, found.factor_names, found.num_samples, found.importance) == (None, (), len(codes), None)
    assert found.estimates[0].low is None
    assert "no factors" in str(found)
    assert "No intervals, because the runs are compared with each other." in str(found)
    assert NOTE in found.notes
    both = raydis.evaluate(runs, factors, metrics=["mig", "udr"], seed=3)
    assert [each.name for each in both.estimates] == ["mig", "udr"]
    assert both["udr"] == found["udr"]
    assert (both.estimates[0].low is None, both.estimates[1].low is None) == (False, True)
    assert both.sizes["udr"] == {"num_samples": 10_000}


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        (1, {"metrics": ["udr"]}, "udr compares runs, and codes is the only one: give the codes of at least two"),
        (2, {}, "there are no factors: give those of the same rows"),
        (2, {"metrics": "all"}, "there are no factors"),
        (2, {"metrics": ["mig", "udr"]}, "there are no factors"),
    ],
)
def test_what_needs_factors_or_several_runs_says_so(
    good: Table, runs: int, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MetricError, match=words):
        raydis.evaluate(good[0] if runs == 1 else [good[0]] * runs, **options)


def test_runs_of_unequal_length_are_refused_without_factors_too(good: Table) -> None:
    with pytest.raises(MetricError, match=r"run 1 has 100 rows, but run 0 has 144: row i of both"):
        raydis.evaluate([good[0], good[0][:100]], metrics=["udr"])


def test_several_runs_give_their_mean_and_its_interval(good: Table) -> None:
    codes, factors = good
    noisy = codes + np.random.default_rng(1).normal(size=codes.shape)
    runs = {"seed 0": codes, "seed 1": noisy, "seed 2": codes[:, :3]}
    found = raydis.evaluate(runs, factors, **QUICK)
    assert (found.intervals, found.num_draws) == ("runs", 1)
    assert [run.name for run in found.runs] == list(runs)
    for name, codes_of_run in runs.items():
        alone = raydis.evaluate(codes_of_run, factors, num_draws=1, **QUICK)
        run = next(run for run in found.runs if run.name == name)
        assert run.estimates == alone.estimates
    values = [run.estimates[0].value for run in found.runs]
    spread, half = around_mean(values, confidence=0.95)  # pyright: ignore[reportArgumentType]
    assert found.estimates[0].value == pytest.approx(np.mean(values))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert found.estimates[0].spread == spread
    assert found.estimates[0].high == min(found.estimates[0].value + half, 1.0)  # pyright: ignore[reportOptionalOperand]


def test_a_number_that_one_run_lacks_has_no_mean(good: Table) -> None:
    codes, factors = good
    found = raydis.evaluate([codes, codes * 1e-3], factors, metrics=["mig", "factor_vae"])
    assert found.values.keys() == {"mig"}
    (lacking,) = [each for each in found.estimates if each.value is None]
    assert lacking.reason is not None
    assert lacking.reason.startswith("run 1: every unit has a standard deviation below 0.05")


# ---- states


def test_a_metric_that_cannot_score_the_codes_leaves_the_others(good: Table) -> None:
    found = raydis.evaluate(good[0][:, :1], good[1], metrics=["mig", "dci"], estimator="tree", num_draws=1)
    assert np.isnan(found["mig"])
    (reason,) = [each.reason for each in found.estimates if each.name == "mig"]
    assert reason == "mig compares units, but there is only one: give the codes of at least two units"
    assert 0.0 <= found["dci_disentanglement"] <= 1.0


def test_codes_that_no_metric_can_score_are_an_error(good: Table) -> None:
    with pytest.raises(MetricError, match="no metric can score codes: every unit has a standard deviation"):
        raydis.evaluate(good[0] * 1e-3, good[1], metrics=["factor_vae"])


def test_a_draw_without_a_number_leaves_no_interval() -> None:
    """The only sample of a level may be missing from a bootstrap, so that a single factor varies there."""
    factors = np.array([[0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [1, 1], [0, 0]])
    found = raydis.evaluate(factors + np.array([0.0, 0.5]), factors, metrics=["mig"], num_draws=12)
    assert found["mig"] >= 0.0
    assert (found.estimates[0].spread, found.estimates[0].low) == (None, None)


def test_few_rows_are_told_that_predictions_read_high(good: Table, scattered: Table) -> None:
    assert any("rows that they have seen" in note for note in raydis.evaluate(*good, num_draws=1, **QUICK).notes)
    assert raydis.evaluate(*scattered, num_draws=1, metrics=["mig"]).notes == ()


def test_few_rows_are_told_that_bins_are_rough() -> None:
    """Units of noise have the mutual information that the note says, up to its first order."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(5, size=400), rng.integers(3, size=400)], axis=1)
    codes = rng.normal(size=(400, 8))
    (note,) = raydis.evaluate(codes, factors, num_draws=1, metrics=["mig"]).notes
    assert note.startswith("with 400 rows and 20 bins, a unit that knows nothing seems to know about 6 % of a factor")
    found = mig(codes, factors, rng=rng, num_samples=20_000).information  # the table's own, almost
    assert found is not None
    assert found[:, 0].mean() / np.log(5) == pytest.approx(0.06, abs=0.02)
    assert raydis.evaluate(codes, factors, num_draws=1, metrics=["sap_continuous"]).notes == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["dcl"]}, "no metric is named dcl; did you mean dci?"),
        ({"metrics": []}, "no metric is chosen"),
        ({"protocol": "publish"}, "there is no protocol 'publish': choose from search, published"),
        ({"estimator": "forest"}, "there is no estimator 'forest': choose from reference, hist, tree"),
        ({"intervals": "runs"}, "there is no kind of intervals 'runs': choose from rows, draws"),
        ({"confidence": 95}, "confidence=95 must lie between 0 and 1"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"num_draws": 2}, "num_draws=2 is too few for intervals: give at least 3, or 1"),
        ({"num_jobs": 0}, "num_jobs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"factor_names": ["a"]}, "1 names for 3 factors"),
    ],
)
def test_a_wrong_argument_is_answered_with_the_right_ones(good: Table, options: dict[str, Any], words: str) -> None:
    with pytest.raises(MetricError) as refused:
        raydis.evaluate(*good, **options)
    assert words in str(refused.value)


def test_unequal_lengths_are_refused_before_any_work(good: Table) -> None:
    with pytest.raises(MetricError, match="codes has 143 rows, but the factors have 144"):
        raydis.evaluate(good[0][1:], good[1])


# ---- the result


def test_importance_is_that_of_dci_and_is_shown_by_factor(good: Table) -> None:
    codes = good[0][:, [2, 3, 0, 1]]
    found = raydis.evaluate(codes, good[1], num_draws=1, **QUICK)
    importance = found.importance
    assert importance is not None
    assert importance.shape == (4, 3)
    assert importance.sum(axis=0) == pytest.approx(1.0)
    assert by_importance(importance) == [2, 3, 0, 1]
    assert by_importance(importance, num_most=3) == [2, 3, 0]
    assert raydis.evaluate(*good, num_draws=1, metrics=["mig"]).importance is None


def test_units_without_importance_come_last() -> None:
    assert by_importance(np.array([[0.0, 0.0], [0.2, 0.3], [0.1, 0.7], [0.7, 0.0]])) == [3, 2, 1, 0]


def test_the_result_is_ready_for_json_and_answers_by_name(good: Table) -> None:
    found: Evaluation = raydis.evaluate(*good, num_draws=3, factor_names=["a", "b", "c"], **QUICK)
    tree = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert tree["factor_names"] == ["a", "b", "c"]
    assert tree["num_levels"] == [4, 3, 3]
    assert tree["estimates"][0]["name"] == "dci_disentanglement"
    assert tree["runs"][0]["details"]["importance"] == found.importance.tolist()  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(KeyError, match="factor_vae was not computed: there are dci_disentanglement"):
        found["factor_vae"]


def test_the_first_draw_alone_gives_the_value(good: Table) -> None:
    values = [raydis.evaluate(*good, metrics=["mig"], num_draws=num)["mig"] for num in (1, 3, 5)]
    assert len(set(values)) == 1


# ---- numpy alone

ALONE = """
import sys
import raydis

before = set(sys.modules)
import numpy as np

assert not {"torch", "ray", "numpy"} & before, before
factors = np.indices((4, 3, 3)).reshape(3, -1).T
found = raydis.evaluate(factors * 1.0, factors, num_draws=3, estimator="tree")
print(found)
raydis.evaluate([factors * 1.0] * 2, factors, ica=True, metrics=["mig", "udr"])
print(found._repr_markdown_())
assert not {"torch", "ray", "pydantic", "matplotlib", "rich", "typer", "pandas", "pyarrow"} & set(sys.modules)
"""


def test_scoring_needs_numpy_scipy_and_scikit_learn_alone(tmp_path: Path) -> None:
    for name in ("torch", "ray", "pydantic", "matplotlib", "rich", "typer", "pandas", "pyarrow", "optuna", "boto3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} is not installed here')")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "DCI disentanglement" in done.stdout
    assert done.stderr == ""
