"""The table of metrics: one entry more is one metric more, wherever numbers are computed, ranked, shown or kept."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from rich.console import Console

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.editor.editor import Editor
from raydis.engine.record import RunRecord
from raydis.engine.session import Report, run_session
from raydis.engine.state import Training
from raydis.errors import ConfigError, FitError, MetricError
from raydis.metrics.entry import Metric, Number
from raydis.metrics.protocol import PUBLISHED, SEARCH
from raydis.metrics.scores import Scores, unscored
from raydis.metrics.standing import Objective, describe, standing, standing_spread
from raydis.metrics.table import METRICS, number_named, numbers, sizes_of
from raydis.registry import ModelRef, Registry
from raydis.registry.promotion import ScoredVersion, decide, promote
from raydis.report.page import render_report
from raydis.store import LocalStore
from raydis.sweep.printout import print_result
from raydis.sweep.result import SweepResult
from raydis.sweep.searcher import trial_state
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import TrialRecord, choose_best, write_tables

SEARCHED = {"method.num_units": {"kind": "int", "low": 4, "high": 6}}
README = Path(__file__).resolve().parents[2] / "raydis/metrics/README.md"
RUN = {
    "preset": "tiny",
    "train": {"num_images": 128, "report_images": 64},
    "method": {"kind": "pca_ica", "num_units": 4},
}


@dataclass(frozen=True)
class Overlap:
    """What `overlap` found."""

    status: str
    reason: str | None
    degrees: float
    pairs: np.ndarray


def overlap(codes: np.ndarray, factors: np.ndarray, *, rng: np.random.Generator, num_rows: int) -> Overlap:
    """A toy: the mean angle by which units depart from being uncorrelated, 0 (best) to 90 degrees."""
    rows = rng.integers(len(codes), size=num_rows)
    pairs = np.degrees(np.arcsin(np.abs(np.corrcoef(codes[rows].T)).clip(0, 1)))
    return Overlap("valid", None, float(pairs[np.triu_indices(len(pairs), 1)].mean()), pairs)


TOY = Metric(
    function=overlap,
    numbers=(Number("overlap", "degrees", short="lap", title="Overlap", low=0.0, high=90.0, direction="min"),),
    sizes={"num_rows": 50},
    details={"overlap_pairs": "pairs"},
    default=True,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """One entry more in the table; nothing else of raydis is told."""
    monkeypatch.setitem(METRICS, "overlap", TOY)
    return TOY


@pytest.fixture
def dataset() -> FactorDataset:
    return open_dataset(RunConfig.model_validate(expand(RUN)).data)


@pytest.fixture
def last(toy: Metric, dataset: FactorDataset, tmp_path: Path) -> Report:
    """The last report of a run with the toy in the table."""
    training = Training(RunConfig.model_validate(expand(RUN)), dataset, device=torch.device("cpu"))
    *_, last = run_session(training, tmp_path)
    return last


def spec_of(*objectives: dict[str, Any]) -> SweepSpec:
    tree = {"name": "toys", "run": expand(RUN), "num_trials": 1, "search": SEARCHED, "objectives": list(objectives)}
    return parse(SweepSpec, tree, source="test")


def record_of(report: Report, spec: SweepSpec) -> TrialRecord:
    """The trial of one run, by the row that Ray gets."""
    run = RunRecord.from_ray(report.record.to_ray())
    state, reason = trial_state(run, False, spec.objectives)
    return TrialRecord(
        number=0,
        control=None,
        settings={"method.num_units": 4},
        state="complete" if state.name == "COMPLETE" else "failed",
        reason=reason,
        run=run,
        time_s=1.0,
        checkpoint=str(report.checkpoint),
    )


def test_a_metric_that_joins_the_table_is_in_the_scores_and_in_what_ray_gets(last: Report) -> None:
    scores, row = last.scores, last.record.to_ray()
    assert scores is not None
    assert scores.spread is not None
    assert 0.0 <= scores.values["overlap"] <= 90.0
    assert scores.spread["overlap"] > 0.0
    assert len(scores.details["overlap_pairs"]) == 4
    assert scores.sizes["overlap"] == {"num_rows": 50}
    assert Scores.from_dict(scores.to_dict()) == scores
    assert row["overlap"] == scores.values["overlap"]
    assert RunRecord.of_failure(FitError("diverged")).to_ray().keys() == row.keys()


def test_a_metric_that_joins_the_table_can_be_an_objective_and_stands_in_every_table_of_a_sweep(
    last: Report, tmp_path: Path
) -> None:
    spec = spec_of({"metric": "overlap"})
    assert spec.objectives == (Objective(metric="overlap", direction="min"),)
    record = record_of(last, spec)
    value, spread = record.value("overlap"), record.spread("overlap")
    assert (record.state, record.reason) == ("complete", None)
    assert choose_best([record], spec.objectives) is record

    text = io.StringIO()
    result = SweepResult("s", "/runs/sweeps/s", [record], {0}, [], record, None, interrupted=False)
    print_result(result, spec, "runs", Console(file=text, width=100))
    assert re.search(r"trial +num units +lap +state", text.getvalue())
    assert f"best    trial 0, lap {value:.3f} ± {spread:.3f} (search protocol" in text.getvalue()

    write_tables(LocalStore(tmp_path), "s", [record], {0})
    (row,) = csv.DictReader((tmp_path / "s/trials.csv").read_text().splitlines())
    (kept,) = pyarrow.parquet.read_table(tmp_path / "s/trials.parquet").to_pylist()
    assert (float(row["overlap"]), float(row["overlap_spread"])) == (value, spread)
    assert (kept["overlap"], kept["overlap_spread"]) == (value, spread)


def test_a_metric_that_joins_the_table_is_reported_and_decides_a_promotion(
    last: Report, dataset: FactorDataset, tmp_path: Path
) -> None:
    assert last.scores is not None
    assert last.checkpoint is not None
    page = render_report(Editor.open(last.checkpoint), dataset)
    value, spread = last.scores.values["overlap"], (last.scores.spread or {})["overlap"]
    assert re.search(rf"Overlap\s*</td>\s*<td[^>]*>\s*{value:.3f} ± {spread:.3f}", page)

    goals = [Objective(metric="overlap")]
    promotion = promote(
        Registry(LocalStore(tmp_path / "store")), open_checkpoint(last.checkpoint), "m", objectives=goals
    )
    assert promotion.decision.promote
    words = f"1 - overlap (scaled from 0 to 90) {1 - value / 90:.4f}"
    assert promotion.decision.reason == f"m@1 ({words}) is the first best"


@pytest.mark.parametrize("status", ["not_ready", "invalid", "no_factors"])
def test_scores_without_numbers_rank_nowhere_and_say_why(last: Report, status: Any) -> None:
    reason = "no unit is open after 128 images"
    scores = unscored(status, reason, protocol=SEARCH, num_images=9, data_fingerprint="a")
    failed = replace(last, scores=scores)
    spec = spec_of({"metric": "mig"})
    row, record = failed.record.to_ray(), record_of(failed, spec)
    assert (row["status"], row["reason"], row["mig"], row["overlap"]) == (status, reason, None, None)
    assert (record.state, record.reason, record.value("mig")) == ("failed", reason, None)
    assert choose_best([record], spec.objectives) is None
    decision = decide(ScoredVersion(ModelRef("m", 1), scores), None, objectives=spec.objectives)
    assert not decision.promote
    assert decision.reason == f"m@1 has no valid scores ({status}: {reason})"


def test_numbers_of_any_range_weigh_alike_in_a_standing(toy: Metric) -> None:
    goals = [Objective(metric="overlap"), Objective(metric="mig")]
    assert goals[0].direction == "min"
    assert standing({"overlap": 18.0, "mig": 0.4}, goals) == pytest.approx((0.8 + 0.4) / 2)
    assert standing_spread({"overlap": 9.0, "mig": 0.02}, goals) == pytest.approx((0.1 + 0.02) / 2)
    assert describe(goals) == "mean of 1 - overlap (scaled from 0 to 90) and mig"
    assert Objective(metric="overlap", direction="max").oriented(18.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "near"),
    [("factor_va", "factor_vae"), ("dci", "dci_disentanglement"), ("dci_complete", "dci_completeness")],
)
def test_an_unknown_objective_is_refused_with_the_nearest_name_and_all_known_ones(name: str, near: str) -> None:
    said = (
        rf"objectives\.0\.metric: .*no metric gives a number named {name}; did you mean {near}\? The known names are "
    )
    with pytest.raises(ConfigError, match=said + ", ".join(numbers())):
        spec_of({"metric": name})
    with pytest.raises(MetricError, match=rf"did you mean {near}\?"):
        number_named(name)


def test_a_name_that_is_like_none_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MetricError, match=f"a number named xyz\\. The known names are {', '.join(numbers())}"):
        number_named("xyz")


def test_the_published_sizes_are_those_of_disentanglement_lib() -> None:
    assert PUBLISHED.whole_data_set
    assert PUBLISHED.estimator == "reference"
    assert sizes_of(PUBLISHED) == {
        "factor_vae": {
            "num_variance": 10_000,
            "num_train": 10_000,
            "num_eval": 5_000,
            "batch_size": 64,
            "prune_threshold": 0.05,
        },
        "dci": {"num_train": 10_000, "num_test": 5_000},
        "mig": {"num_samples": 10_000, "num_bins": 20},
    }


def test_a_protocol_may_change_sizes_that_exist_and_no_others() -> None:
    coarse = sizes_of(replace(SEARCH, overrides={"mig": {"num_bins": 10}}))
    assert coarse == sizes_of(SEARCH) | {"mig": {"num_samples": 10_000, "num_bins": 10}}
    assert METRICS["mig"].sizes["num_bins"] == 20
    said = "protocol search overrides bins of mig, which it does not have: its sizes are num_samples, num_bins"
    with pytest.raises(MetricError, match=said):
        sizes_of(replace(SEARCH, overrides={"mig": {"bins": 10}}))
    with pytest.raises(MetricError, match="overrides bins of mgi, which it does not have: its sizes are none"):
        sizes_of(replace(SEARCH, overrides={"mgi": {"bins": 10}}))


def test_the_readme_lists_the_numbers_of_the_table_in_its_order() -> None:
    lines = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [(name, title, ends, better) for name, title, _, ends, better in rows]
    assert found == [
        (
            f"`{each.name}`",
            each.title,
            f"{each.low:g} to {each.high:g}",
            {"max": "higher", "min": "lower"}[each.direction],
        )
        for each in numbers().values()
    ]
