from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.data.space import FactorSpace
from raydis.editor.editor import Editor
from raydis.engine.evaluate import evaluate
from raydis.engine.group import Workers
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Progress, Training
from raydis.engine.step import Step
from raydis.errors import MetricError
from raydis.methods.vae import BetaVae
from raydis.metrics.telling import label_units

CPU = torch.device("cpu")


def test_a_session_writes_checkpoints_when_they_are_due_and_scores_the_finished_model(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path
) -> None:
    config = tiny(train={"num_images": 160, "report_images": 32, "checkpoint_images": 96})
    training = Training(config, dataset, device=CPU)
    reports = list(run_session(training, tmp_path, parent={"sweep": "quickstart", "trial": "3"}))
    assert [report.progress.images_seen for report in reports] == [32, 64, 96, 128, 160, 160]
    assert [report.checkpoint and report.checkpoint.name for report in reports] == [
        *(None, None, "checkpoint-000000000096", None),
        *("checkpoint-000000000160", "checkpoint-000000000160"),
    ]
    assert [report.scores is None for report in reports] == [True] * 5 + [False]

    half, last = (open_checkpoint(tmp_path / f"checkpoint-{seen:012d}") for seen in (96, 160))
    assert half.metrics["scores"] is None
    assert reports[-1].scores is not None
    assert last.metrics["scores"] == reports[-1].scores.to_dict()
    assert last.metrics["loss"] == reports[-1].progress.loss
    assert last.metrics["factor_names"] == list(dataset.space.names)
    assert last.config == config
    assert last.manifest.images_seen == 160
    assert last.manifest.data_fingerprint == dataset.fingerprint
    assert last.manifest.parent is not None
    assert last.manifest.parent.trial == "3"

    # what was saved is what was scored
    method = Editor.open(last.folder).method
    assert evaluate(method, dataset, training.loader, config.evaluation) == reports[-1].scores


@pytest.mark.parametrize(("num_cpus", "num_jobs"), [(0.5, 1), (3, 3)])
def test_scoring_uses_the_cpus_that_the_run_has_reserved(
    num_cpus: float,
    num_jobs: int,
    tiny: Callable[..., RunConfig],
    dataset: FactorDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def evaluate_alone(*arguments: Any, num_jobs: int, **options: Any) -> Any:
        asked.append(num_jobs)
        return evaluate(*arguments, **options)

    monkeypatch.setattr("raydis.engine.session.evaluate", evaluate_alone)
    config = tiny(train={"num_images": 64}, evaluation={"rungs": [32]}, compute={"num_cpus": num_cpus})
    *_, last = run_session(Training(config, dataset, device=CPU), tmp_path)
    assert last.scores is not None
    assert asked == [num_jobs] * 2  # at the rung and at the end


def test_rungs_are_scored_by_the_search_protocol_and_a_resumed_run_keeps_them(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path
) -> None:
    config = tiny(
        train={"num_images": 160, "report_images": 96, "checkpoint_images": 96},
        evaluation={"rungs": [40, 96], "protocol": "published"},
    )
    reports = list(run_session(Training(config, dataset, device=CPU), tmp_path))
    assert [(report.progress.images_seen, report.progress.rung_due) for report in reports] == [
        *((64, True), (96, True), (160, False), (160, False)),  # 40 lies within the second step
    ]
    assert [report.scores and report.scores.protocol for report in reports] == ["search", "search", None, "published"]
    spreads = [report.scores.spread for report in reports if report.scores is not None]
    assert [spread is None for spread in spreads] == [True, True, False]  # nothing is decided by a rung
    half, last = (open_checkpoint(tmp_path / f"checkpoint-{seen:012d}") for seen in (96, 160))
    assert half.metrics["scores"] is None  # of the finished model alone
    assert last.metrics["curve"][:2] == half.metrics["curve"]
    assert [point["images_seen"] for point in last.metrics["curve"]] == [64, 96, 160]
    assert [point["scores"] for point in last.metrics["curve"]] == [
        report.scores.to_dict() for report in reports if report.scores is not None
    ]

    resumed = Training(config, dataset, device=CPU)
    resumed.resume(half)
    *_, report = run_session(resumed, tmp_path)
    assert [point["scores"] for point in resumed.curve] == [point["scores"] for point in last.metrics["curve"]]
    assert report.progress.train_s > half.metrics["train_s"]


def test_a_run_whose_scoring_fails_keeps_its_training_and_is_scored_without_another_step(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train={"num_images": 160, "report_images": 96, "checkpoint_images": 96}, evaluation={"rungs": [96]})
    *_, expected = run_session(Training(config, dataset, device=CPU), tmp_path)
    assert expected.checkpoint is not None
    whole = open_checkpoint(expected.checkpoint.rename(tmp_path / "whole"))

    def fail(*arguments: object, protocol: object = None, **more: object) -> Any:
        if protocol is None:
            raise MemoryError("no room")
        return evaluate(*arguments, protocol=protocol, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("raydis.engine.session.evaluate", fail)
    with pytest.raises(MemoryError):
        list(run_session(Training(config, dataset, device=CPU), tmp_path))
    monkeypatch.undo()
    kept = open_checkpoint(tmp_path / "checkpoint-000000000160")
    assert (kept.manifest.images_seen, kept.metrics["scores"]) == (160, None)
    again = Training(config, dataset, device=CPU)
    again.resume(kept)
    monkeypatch.setattr(Step, "__call__", lambda *_: pytest.fail("it trained"))
    (report,) = run_session(again, tmp_path)
    assert (report.progress.finished, report.progress.images_seen) == (True, 160)
    assert report.progress.loss == expected.progress.loss
    assert report.scores == expected.scores
    assert report.checkpoint is not None
    scored = open_checkpoint(report.checkpoint)
    assert scored.metrics["diagnosis"] == whole.metrics["diagnosis"]
    assert [point["images_seen"] for point in scored.metrics["curve"]] == [96, 160]
    for found, wanted in ((scored.weights(), whole.weights()), (scored.training().tensors, whole.training().tensors)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())

    # and then there is nothing left to do
    once_more = Training(config, dataset, device=CPU)
    once_more.resume(scored)
    assert list(run_session(once_more, tmp_path)) == []


def test_a_finished_checkpoint_tells_what_its_units_and_its_anchors_do(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path
) -> None:
    config = tiny(train={"num_images": 160, "checkpoint_images": 96, "report_images": 96})
    for report in run_session(Training(config, dataset, device=CPU), tmp_path):
        assert report.checkpoint is not None
        metrics = open_checkpoint(report.checkpoint).metrics
        information, diagnosis = metrics["information"], metrics["diagnosis"]
        assert (diagnosis is None) == (information is None) == (not report.progress.finished)
    assert [len(row) for row in diagnosis["rows"]] == [len(diagnosis["columns"])] * 4
    anchoring = diagnosis["details"]
    assert anchoring["num_anchored_units"] == 4
    assert len(anchoring["units"]) == 4
    assert anchoring["means"]["distance_moved"] > 0
    assert np.shape(information["share"]) == (4, 6)
    for unit, label in zip(anchoring["units"], label_units(information, metrics["factor_names"], 4), strict=True):
        assert unit["factor"] == (label.factors[0][0] if label.factors else None)


class Closed(BetaVae):
    """A method that has not taken its units into use."""

    def not_ready(self) -> str:
        return f"0 of {self.num_units} units are open"


def test_a_method_that_is_not_ready_ends_with_its_reason_and_a_checkpoint(
    dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydis.build.BetaVae", Closed)
    method = {"kind": "beta_vae", "num_units": 4, "hidden_dim": 16}
    train, first_stage = {"batch_size": 32, "num_images": 64, "report_images": 32}, {"kind": "pixel"}
    layers = {"preset": "tiny", "method": method, "train": train, "first_stage": first_stage}
    config = RunConfig.model_validate(expand(layers | {"evaluation": {"rungs": [32]}}))
    rung, _, last = run_session(Training(config, dataset, device=CPU), tmp_path)
    assert rung.scores is not None
    assert (rung.record.state, rung.scores.status) == ("running", "not_ready")
    assert (last.record.state, last.record.reason) == ("not_ready", "0 of 4 units are open")
    assert (last.record.finished, last.record.values()) == (True, {})
    assert RunRecord.from_ray(last.record.to_ray()) == last.record
    assert last.checkpoint is not None
    found = open_checkpoint(last.checkpoint)
    assert found.metrics["scores"]["status"] == "not_ready"
    assert [point["scores"]["reason"] for point in found.metrics["curve"]] == ["0 of 4 units are open"] * 2


def test_a_run_need_not_score_itself(tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path) -> None:
    config = tiny(train={"num_images": 32}, evaluation={"protocol": "none"})
    *_, report = run_session(Training(config, dataset, device=CPU), tmp_path)
    assert (report.progress.finished, report.scores) == (True, None)
    assert report.checkpoint is not None
    metrics = open_checkpoint(report.checkpoint).metrics
    assert metrics["scores"] is metrics["information"] is None


def untrainable(config: RunConfig, dataset: FactorDataset, rank: int) -> Any:
    """A training that has no step to take."""
    parts = {"average": None, "loader": None, "unscored": None}
    return SimpleNamespace(config=config, dataset=dataset, workers=Workers(rank), **parts)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("protocol", ["search", "published"])
def test_a_single_varying_factor_is_refused_before_the_first_step_on_every_rank(
    tiny: Callable[..., RunConfig], protocol: str, rank: int, tmp_path: Path
) -> None:
    one = dict.fromkeys(("floor_hue", "wall_hue", "object_hue", "scale", "orientation"), 1)
    config = tiny(data={"levels": one | {"shape": 4}}, evaluation={"protocol": protocol})
    with pytest.raises(MetricError, match="1 of 6 factors vary in these 4 rows, but at least two must"):
        next(run_session(untrainable(config, open_dataset(config.data), rank), tmp_path))


@pytest.mark.parametrize("protocol", ["search", "published"])
def test_a_sub_grid_that_cannot_be_drawn_is_refused_before_the_first_step(
    tiny: Callable[..., RunConfig], protocol: str, tmp_path: Path
) -> None:
    space = FactorSpace(tuple("abcdefg"), (2,) * 7)
    dataset = ArrayDataset("grid", np.zeros((len(space), 16, 16, 3), np.uint8), space, fingerprint="grid")
    config = tiny(evaluation={"max_images": 64, "protocol": protocol})
    with pytest.raises(MetricError, match="max_images=64 cannot hold 2 levels of each factor"):
        next(run_session(untrainable(config, dataset, 0), tmp_path))


def test_only_the_first_worker_writes(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Progress(
        step=1,
        images_seen=32,
        num_images=32,
        losses={"loss": 0.5},
        images_per_s=1.0,
        num_workers=2,
        train_s=1.0,
        refit_s=0.0,
        num_refits=0,
        health={"num_unanchored_units": 0},
        checkpoint_due=True,
        rung_due=False,
        finished=True,
    )
    monkeypatch.setattr("raydis.engine.session.fit", lambda training: iter([last]))
    monkeypatch.setattr("raydis.engine.session.check_finite", lambda training: None)
    second = untrainable(tiny(), dataset, 1)
    second.unscored = last
    reports = list(run_session(second, tmp_path))
    assert [report.progress.finished for report in reports] == [False, True]  # as many as the first worker's
    assert [(report.checkpoint, report.scores) for report in reports] == [(None, None)] * 2
    assert list(tmp_path.iterdir()) == []
