"""What is asked of a cluster and a spec before a sweep starts."""

from __future__ import annotations

import pytest

from raydis.errors import ConfigError, ResourceError
from raydis.sweep.preflight import check_checkpoints, parallel_trials
from raydis.sweep.spec import SweepSpec


@pytest.mark.parametrize(
    ("compute", "free", "grows", "parallel"),
    [
        ({}, 1.0, False, 8),  # trials of one worker wait in Tune's queue
        ({"num_workers": 2}, 8.0, False, 4),
        ({"num_workers": 2}, 5.0, False, 2),  # those of several start together or not at all
        ({"num_workers": 2}, 1.0, False, 1),  # full at this moment
        ({"num_workers": 2}, 0.0, True, 5),
        ({"num_workers": 64}, 0.0, True, 5),  # more than there is
    ],
)
def test_as_many_trials_run_at_once_as_there_are_places_or_may_come(
    monkeypatch: pytest.MonkeyPatch, compute: dict, free: float, grows: bool, parallel: int
) -> None:
    monkeypatch.setattr("raydis.sweep.preflight.free_nodes", lambda: [{"CPU": free}])
    tree = {"name": "s", "run": {"compute": compute}, "controls": [{"name": "base"}], "num_trials": 4}
    if compute.get("num_workers", 1) == 64:
        tree["run"]["train"] = {"batch_size": 512}
    spec = SweepSpec.model_validate(
        tree | {"search": {"train.learning_rate": {"kind": "float", "low": 1e-4, "high": 1e-3}}}
    )
    assert parallel_trials(spec, [{"CPU": 8.0}], grows=grows) == parallel


def test_a_trial_that_a_cluster_of_fixed_size_cannot_hold_is_refused() -> None:
    spec = SweepSpec.model_validate({"name": "s", "run": {}, "controls": [{"name": "base"}], "num_trials": 0})
    with pytest.raises(ResourceError, match=r"needs 1 worker\(s\) of 1 CPUs"):
        parallel_trials(spec, [{"CPU": 0.5}], grows=False)


@pytest.mark.parametrize(
    "part",
    [
        {"controls": [{"name": "vq", "set": {"first_stage": {"kind": "vq", "checkpoint": "vq@best"}}}]},
        {"controls": [{"name": "vq", "set": {"first_stage.checkpoint": "vq@2"}}]},
        {
            "num_trials": 1,
            "search": {"first_stage": {"kind": "choice", "values": [{"kind": "vq", "checkpoint": "vq@best"}]}},
        },
        {"controls": [{"name": "x", "set": {"method": {"kind": "disdiff", "pretrained": {"checkpoint": "vq@1"}}}}]},
    ],
)
def test_a_name_of_the_registry_is_looked_up_for_the_base_run_alone(part: dict) -> None:
    tree = {
        "name": "s",
        "run": {"first_stage": {"kind": "vq", "checkpoint": "vq@best"}},
        "controls": [{"name": "base"}],
        "num_trials": 0,
    }
    check_checkpoints(SweepSpec.model_validate(tree))
    with pytest.raises(ConfigError, match=r"names vq@\w+: give the checkpoint's folder or URI"):
        check_checkpoints(SweepSpec.model_validate(tree | part))
