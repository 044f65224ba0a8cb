from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from raydis.engine.record import RunRecord
from raydis.engine.state import Progress
from raydis.errors import FitError, MetricError
from raydis.metrics.reconstruction import Reconstruction
from raydis.metrics.scores import Scores, ScoreStatus
from raydis.metrics.table import numbers
from tests.records import scores_of

PROGRESS = Progress(
    step=16,
    images_seen=512,
    num_images=512,
    losses={"loss": 0.25, "kl": 2.0},
    images_per_s=640.5,
    num_workers=2,
    train_s=9.5,
    refit_s=0.5,
    num_refits=3,
    health={"num_unanchored_units": 1},
    checkpoint_due=True,
    rung_due=False,
    finished=True,
)
VALID = scores_of(dci_disentanglement=0.4, factor_vae=0.7)
# A line of result.json as Ray Tune kept it before records had a type, but for most of Ray's own keys.
OLD_ROW = """
{"step": 16, "images_seen": 512, "num_images": 512, "loss": 0.25, "images_per_s": 640.5, "num_workers": 1,
"train_s": 0.7993754879000781, "refit_s": 0.125, "num_refits": 1, "health": "{\\"num_unanchored_units\\": 0}",
"finished": true, "status": "valid", "reason": null, "dci_disentanglement": 0.31, "dci_completeness": 0.5,
"dci_informativeness": 0.9375, "factor_vae": 0.55, "mig": 0.0625, "scores": "{\\"protocol\\": \\"search\\",
\\"sizes\\": {\\"factor_vae_num_variance\\": 10000, \\"prune_threshold\\": 0.05}, \\"estimator\\": \\"hist\\",
\\"seed\\": 0, \\"num_images\\": 324, \\"data_fingerprint\\": \\"shapes3d_procedural-1f\\", \\"status\\": \\"valid\\",
\\"reason\\": null, \\"factor_vae\\": 0.55, \\"dci_disentanglement\\": 0.31, \\"dci_completeness\\": 0.5,
\\"dci_informativeness\\": 0.9375, \\"mig\\": 0.0625, \\"num_active_units\\": 4,
\\"importance\\": [[0.5, 0.25], [0.125, 0.0]], \\"num_draws\\": 3, \\"spread\\": {\\"dci_disentanglement\\": 0.0123,
\\"dci_completeness\\": 0.01, \\"dci_informativeness\\": 0.002, \\"factor_vae\\": 0.004, \\"mig\\": 0.002}}",
"psnr": null, "timestamp": 1790000003, "training_iteration": 4, "time_total_s": 49.3824, "trial_id": "a0",
"done": false, "hostname": "node", "config": {"number": 0, "control": null, "settings": {}}}
"""
OLD_FAILURE = """
{"step": null, "images_seen": null, "num_images": null, "num_workers": null, "num_refits": null, "loss": null,
"images_per_s": null, "train_s": null, "refit_s": null, "dci_disentanglement": null, "dci_completeness": null,
"dci_informativeness": null, "factor_vae": null, "mig": null, "psnr": null, "health": null, "finished": true,
"status": "failed", "reason": "FitError: the loss became nan by step 3 (96 images)", "scores": null,
"training_iteration": 1, "time_total_s": 12.3, "done": false}
"""


def of_status(status: Any) -> Scores:
    return VALID if status == "valid" else replace(VALID, status=status, reason="because")


RECORDS = {
    "running": RunRecord.of(replace(PROGRESS, finished=False), None, None),
    "at a rung": RunRecord.of(replace(PROGRESS, finished=False), VALID, None),
    "at a rung without numbers": RunRecord.of(replace(PROGRESS, finished=False), of_status("invalid"), None),
    "without a loss": RunRecord.of(replace(PROGRESS, losses={}, health={}), VALID, None),
    "a first stage": RunRecord.of(PROGRESS, None, Reconstruction(21.5)),
    "with reconstructions": RunRecord.of(PROGRESS, VALID, Reconstruction(21.5, 0.75, 12.5)),
    "a failure": RunRecord.of_failure(FitError("the loss became nan")),
    "nothing yet": RunRecord("running"),
    **{status: RunRecord.of(PROGRESS, of_status(status), None) for status in get_args(ScoreStatus)},
}


@pytest.mark.parametrize("status", get_args(ScoreStatus))
def test_a_run_that_ends_has_the_state_and_the_reason_of_its_scores(status: str) -> None:
    record = RECORDS[status]
    assert (record.state, record.finished) == (status, True)
    assert record.reason == (None if status == "valid" else "because")


def test_a_run_that_goes_on_is_running_whatever_a_rung_scored() -> None:
    for name in ("running", "at a rung", "at a rung without numbers"):
        assert (RECORDS[name].state, RECORDS[name].finished) == ("running", False)
    assert RECORDS["at a rung"].values()["factor_vae"] == 0.7
    assert RECORDS["at a rung without numbers"].reason == "because"


def test_a_run_that_does_not_evaluate_itself_ends_unscored() -> None:
    record = RECORDS["a first stage"]
    assert (record.state, record.finished, record.values()) == ("unscored", True, {})
    assert record.reconstruction == Reconstruction(21.5)


def test_a_failure_says_why_and_has_no_numbers() -> None:
    record = RECORDS["a failure"]
    assert (record.state, record.finished) == ("failed", True)
    assert record.reason == "FitError: the loss became nan"
    assert record == RunRecord("failed", record.reason)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_comes_back_from_the_row_that_ray_keeps(name: str) -> None:
    row = RECORDS[name].to_ray()
    assert RunRecord.from_ray(row) == RECORDS[name]
    assert RunRecord.from_ray(json.loads(json.dumps(row)) | {"training_iteration": 3}) == RECORDS[name]


def test_every_row_is_flat_and_has_the_same_keys() -> None:
    rows = [record.to_ray() for record in RECORDS.values()]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert set(numbers()) <= set(rows[0])
    assert all(value is None or isinstance(value, int | float | str) for row in rows for value in row.values())


def test_a_row_of_before_records_had_a_type_is_read() -> None:
    row = json.loads(OLD_ROW.replace("\n", " "))
    record = RunRecord.from_ray(row)
    assert (record.state, record.step, record.images_seen, record.loss) == ("valid", 16, 512, 0.25)
    assert (record.train_s, record.health, record.reconstruction) == (
        *(0.7993754879000781, {"num_unanchored_units": 0}, None),
    )
    assert {name: record.values()[name] for name in ("dci_disentanglement", "factor_vae", "mig")} == {
        "dci_disentanglement": 0.31,
        "factor_vae": 0.55,
        "mig": 0.0625,
    }
    assert record.scores is not None
    assert record.scores.spread is not None
    assert (record.scores.spread["mig"], record.scores.details["importance"]) == (0.002, [[0.5, 0.25], [0.125, 0.0]])
    written = record.to_ray()
    assert {name: written[name] for name in row if name in written and name != "scores"} == {
        name: row[name] for name in row if name in written and name != "scores"
    }


def test_a_failure_of_before_records_had_a_type_is_read() -> None:
    record = RunRecord.from_ray(json.loads(OLD_FAILURE))
    assert record == RunRecord("failed", "FitError: the loss became nan by step 3 (96 images)")


def test_a_row_of_rays_own_keys_alone_is_of_a_run_that_has_yet_to_report() -> None:
    assert RunRecord.from_ray({"trial_id": "a", "done": True}) == RunRecord("running")


def test_a_state_that_nobody_knows_is_refused() -> None:
    with pytest.raises(
        MetricError, match=r"status='dormant' is not a state of a run: read it with the raydis that wrote"
    ):
        RunRecord.from_ray({"status": "dormant"})
