"""A run that loses a node: two nodes of one worker each, real processes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Training
from tests.double import ROUNDING, double_precision

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # for a machine that is busy with other things
pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]
TREE = {
    "preset": "tiny",
    "method": {
        "encoder": {"norm": "batch"},
        "unet": {"dropout_rate": 0.0, "skip_dropout_rate": 0.0},
        "anchors": {"num_gaussians": 1, "num_splits": 0},  # which of several optima EM finds can hang on rounding
    },
    "train": {"num_images": 3072, "report_images": 128, "checkpoint_images": 512, "learning_rate": 1e-4},
}
SECONDS = {  # in which Ray finds out that a node is gone, and that workers do not start
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}


def run_and_lose_a_node(folder: str) -> None:
    """In a process of its own: writes all reports and the last checkpoint to a file."""
    import ray
    from ray.cluster_utils import Cluster

    from raydis.train.trainer import run

    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        hook = "tests.double.compute_in_double"
        ray.init(cluster.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": hook})
        reports = []

        def lose_it_once(record: RunRecord) -> None:
            reports.append(record.to_ray())
            if record.images_seen == 640 and len(cluster.worker_nodes) == 1:
                cluster.remove_node(other, allow_graceful=False)

        config = RunConfig.model_validate(expand({**TREE, "compute": {"num_workers": 2, "min_workers": 1}}))
        result = run(config, storage=f"{folder}/store", name="elastic", on_report=lose_it_once)
        Path(folder, "found.json").write_text(json.dumps({"reports": reports, "checkpoint": result.checkpoint}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_run_that_loses_a_node_goes_on_with_fewer_workers_from_its_last_checkpoint(tmp_path: Path) -> None:
    script = f"import runpy; runpy.run_path({__file__!r})['run_and_lose_a_node']"
    with tempfile.TemporaryDirectory(prefix="re-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        settings = {
            "RAY_TMPDIR": ray_folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{script}({str(tmp_path)!r})"],
            env=inherited | settings | SECONDS,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 0, done.stderr
    assert "run elastic: no room for all of its 2 workers, it continues with 1" in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    seen = [(report["num_workers"], report["images_seen"]) for report in found["reports"]]
    lost = next(place for place, (num_workers, _) in enumerate(seen) if num_workers == 1)
    assert (2, 640) in seen[:lost]
    last_checkpoint = seen[lost - 1][1] // 512 * 512  # two workers go on until Ray finds out that the node is gone
    assert seen[lost][1] - 128 in (last_checkpoint, last_checkpoint - 512)  # the last may not have been kept any more
    expected = [(1, 128 * number) for number in range(seen[lost][1] // 128, 25)]
    assert seen[lost:] == [*expected, expected[-1]]  # the last scores what the one before it trained

    config = RunConfig.model_validate(expand(TREE))
    with double_precision():
        alone = Training(config, open_dataset(config.data), device=torch.device("cpu"))
        *_, last = run_session(alone, tmp_path)
    assert last.checkpoint is not None
    weights = open_checkpoint(Path(found["checkpoint"])).weights()
    for name, weight in open_checkpoint(last.checkpoint).weights().items():
        if name.startswith(("encoder.", "unet.")):
            torch.testing.assert_close(weights[name], weight, atol=ROUNDING, rtol=0)
