"""What a session hands to Ray, and when not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import FitError, LeaseLost
from raydis.train.report import report_session


def test_no_checkpoint_is_handed_over_once_the_run_is_somebody_elses() -> None:
    plan = {"num_images": 128, "report_images": 32, "checkpoint_images": 64}
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": plan}))
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    told: list[tuple[int, Path | None]] = []
    library: Any = SimpleNamespace(
        get_checkpoint=lambda: None,
        Checkpoint=SimpleNamespace(from_directory=Path),
        report=lambda metrics, checkpoint: told.append((metrics["images_seen"], checkpoint)),
    )

    def still_ours() -> None:
        if training.images_seen > 64:
            raise LeaseLost("taken over")

    with pytest.raises(LeaseLost, match="taken over"):
        report_session(library, training, parent=None, before_checkpoint=still_ours)
    assert [(seen, checkpoint is not None) for seen, checkpoint in told] == [(32, False), (64, True), (96, False)]


@pytest.mark.parametrize(
    ("method", "has_loss", "health"),
    [({}, True, '{"num_unanchored_units": 0}'), ({"kind": "pca_ica", "num_units": 4}, False, "{}")],
)
def test_every_report_is_flat_and_has_the_same_keys_whatever_the_method(
    method: dict[str, Any], has_loss: bool, health: str, tmp_path: Path
) -> None:
    plan = {"num_images": 128, "report_images": 64}
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": plan, "method": method}))
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    rows = [report.record.to_ray() for report in run_session(training, tmp_path)]
    assert [row["status"] for row in rows][-2:] == ["running", "valid"]
    assert {frozenset(row) for row in [*rows, RunRecord.of_failure(FitError("diverged")).to_ray()]} == {
        frozenset(rows[0])
    }
    for row in rows:
        assert all(value is None or isinstance(value, int | float | str) for value in row.values())
        assert (row["loss"] is not None, row["health"]) == (has_loss, health)
