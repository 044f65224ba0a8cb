"""Runs under Ray Train: they end as they would without it, whatever happens to their processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyarrow.fs import FileSystem
from ray import train

from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import ClusterError, ConfigError, DataError, LeaseLost, LeaseTaken, ResourceError, StoreError
from raydis.registry import Registry
from raydis.store import LocalStore
from raydis.store.lease import Lease
from raydis.train.trainer import fit_with_ray, run
from tests.double import ROUNDING, double_precision
from tests.fake_s3 import FakeS3, serving

TIMEOUT_S = 1200  # for a machine that is busy with other things
LONG = {"num_images": 2048, "report_images": 128, "checkpoint_images": 512}
# Workers drop other channels than one would, and which of several optima EM finds can hang on rounding.
SMOOTH = {"unet": {"skip_dropout_rate": 0.0}, "anchors": {"num_gaussians": 1, "num_splits": 0}}


def train_without_ray(config: Any, folder: Path) -> Checkpoint:
    folder.mkdir()
    with double_precision():
        training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
        *_, last = run_session(training, folder)
    assert last.checkpoint is not None
    return open_checkpoint(last.checkpoint)


def processes_of(mark: str, command: str) -> list[int]:
    """Processes whose command line holds `command`, of the cluster whose environment holds `mark` and of no other."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = mark.encode() in (entry / "environ").read_bytes()
            if ours and command.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended, or is no process
            continue
    return found


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_train_what_one_process_would(tiny_run: Any, tmp_path: Path) -> None:
    config = tiny_run(method=SMOOTH, compute={"num_workers": 2})
    reports: list[RunRecord] = []
    result = run(config, storage=str(tmp_path / "store"), name="two", on_report=reports.append)
    assert [record.images_seen for record in reports] == [128, 256, 384, 512, 512]
    assert [record.state for record in reports] == ["running", "running", "running", "running", "valid"]
    assert result.record == reports[-1]
    assert result.record.scores is not None
    assert result.record.scores.protocol == "search"
    assert result.checkpoint.startswith(str(tmp_path / "store/train/two"))
    trained = open_checkpoint(Path(result.checkpoint))
    assert trained.config == config.model_copy(update={"compute": trained.config.compute})
    assert (trained.config.compute.num_workers, trained.config.compute.device) == (2, "cpu")  # decided by the cluster
    alone, weights = train_without_ray(tiny_run(method=SMOOTH), tmp_path / "alone"), trained.weights()
    for name, weight in alone.weights().items():
        largest = float(weight.double().abs().nan_to_num(posinf=0.0).max())
        torch.testing.assert_close(weights[name], weight, atol=ROUNDING * max(1.0, largest), rtol=0)


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    cluster: str, tiny_run: Any, tmp_path: Path
) -> None:
    config, seen, killed = tiny_run(train=LONG), [], []

    def kill_once(record: RunRecord) -> None:
        assert record.images_seen is not None
        seen.append(record.images_seen)
        if record.images_seen >= 1152 and not killed:
            killed.extend(processes_of(cluster, "RayTrainWorker"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    result = run(config, storage=str(tmp_path / "store"), on_report=kill_once)
    assert killed
    assert seen[-1] == 2048
    assert seen.count(128) == 1  # it went on from a checkpoint, not from the start
    trained, alone = open_checkpoint(Path(result.checkpoint)), train_without_ray(config, tmp_path / "alone")
    weights = trained.weights()
    for name, weight in alone.weights().items():
        assert torch.equal(weights[name], weight), name

    reports: list[RunRecord] = []
    same = run(config, storage=str(tmp_path / "store"), on_report=reports.append)
    assert not reports  # there was nothing left to do
    assert (same.checkpoint, same.record.images_seen) == (result.checkpoint, 2048)


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_an_error_of_ours_in_a_worker_comes_back_as_itself(tiny_run: Any, tmp_path: Path) -> None:
    config = tiny_run(data={"name": "sprites", "path": str(tmp_path / "absent.npz"), "levels": {}})
    with pytest.raises(DataError, match=r"absent\.npz"):
        run(config, storage=str(tmp_path / "store"))


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.usefixtures("cluster")
def test_a_run_that_the_cluster_cannot_hold_is_refused_at_once(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"needs 1 worker\(s\) of 1 CPUs and 1 GPUs"):
        run(tiny_run(compute={"device": "cuda"}), storage=str(tmp_path))
    assert not list(tmp_path.iterdir())


class Trainers:
    """Stands in for Ray: each start takes free CPUs and an outcome from a script, and notes its number of workers."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *script: tuple[int, Exception | None], grows: bool = False
    ) -> None:
        self.script, self.started, self.slept = list(script), list[int](), 0.0
        monkeypatch.setattr("raydis.train.trainer.check_storage", lambda store, key: None)
        monkeypatch.setattr("raydis.train.trainer.free_nodes", lambda: [{"CPU": 1.0}] * self.script[0][0])
        monkeypatch.setattr("raydis.train.trainer.cluster_grows", lambda: grows)
        monkeypatch.setattr("raydis.train.trainer.time.sleep", self.sleep)
        monkeypatch.setattr("raydis.train.trainer._trainer", self.trainer)

    def trainer(self, config: Any, num_workers: int, **_: Any) -> Trainers:
        self.started.append(num_workers)
        return self

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def fit(self) -> Any:
        _, error = self.script.pop(0)
        if error is not None:
            raise error
        return SimpleNamespace(checkpoint=SimpleNamespace(path="last"), metrics={"num_workers": self.started[-1]})


LOST = train.WorkerGroupError("a node is gone", {1: RuntimeError("connection reset")})
STUCK = train.ControllerError(TimeoutError("the workers did not start"))


def test_a_run_shrinks_to_the_nodes_that_are_left_and_grows_again_at_its_next_restart(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The second start is before the cluster has missed the node.
    trainers = Trainers(monkeypatch, (4, LOST), (4, STUCK), (3, LOST), (4, None))
    config = tiny_run(compute={"num_workers": 4, "min_workers": 1})
    result = fit_with_ray(config, name="elastic", storage=str(tmp_path))
    assert trainers.started == [4, 4, 2, 4]  # three would not share 32 images
    assert (result.checkpoint, result.record) == ("last", RunRecord("running", num_workers=4))
    assert "run elastic: no room for all of its 4 workers, it continues with 2" in caplog.text


@pytest.mark.parametrize(("error", "starts"), [(LOST, 4), (STUCK, 11)])
def test_a_run_that_keeps_failing_is_the_clusters_fault_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path, error: Exception, starts: int
) -> None:
    trainers = Trainers(monkeypatch, *[(1, error)] * 20)
    with pytest.raises(
        ClusterError, match=rf"run mine failed {starts} times, .* continues it from its last checkpoint in"
    ):
        fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert trainers.started == [1] * starts


def test_failed_starts_count_anew_once_workers_have_started(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    trainers = Trainers(monkeypatch, *[(1, STUCK)] * 9, (1, LOST), *[(1, STUCK)] * 9, (1, None))
    fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert len(trainers.started) == 20


def test_a_full_disk_ends_a_run_at_its_first_start(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    full = train.WorkerGroupError("it failed", {0: OSError(errno.ENOSPC, "No space left on device", "/a")})
    trainers = Trainers(monkeypatch, *[(1, full)] * 20)
    with pytest.raises(StoreError, match="cannot use /a: No space left on device: make room"):
        fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert trainers.started == [1]


@pytest.mark.parametrize("name", ["my runs#1/50%", "a%20b", "läufe?x=1", "[x]*"])
def test_ray_is_given_the_very_prefix_that_the_run_was_claimed_under(
    name: str, monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    """Ray reads a storage path as pyarrow does, and reports paths without a scheme."""
    asked: list[str] = []

    class Trainer:
        def __init__(self, *_: Any, run_config: train.RunConfig, **__: Any) -> None:
            assert run_config.storage_path
            _, path = FileSystem.from_uri(run_config.storage_path)
            asked.append(path)

        def fit(self) -> Any:
            return SimpleNamespace(checkpoint=SimpleNamespace(path=f"{asked[-1]}/mine/checkpoint_1"), metrics={})

    monkeypatch.setattr("raydis.train.trainer.TorchTrainer", Trainer)
    monkeypatch.setattr("raydis.train.trainer.free_nodes", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr("raydis.train.trainer.check_storage", lambda store, key: None)
    with serving(FakeS3(), monkeypatch) as server:
        result = fit_with_ray(tiny_run(), name="mine", storage=f"s3://bucket/{name}")
        assert {key.rpartition("/")[0] for key in server.objects} == {f"bucket/{name}/train/mine"}
    assert asked == [f"bucket/{name}/train"]
    assert result.checkpoint == f"s3://bucket/{name}/train/mine/checkpoint_1"

    result = fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path / name))
    assert asked[1:] == [f"{tmp_path}/{name}/train"]
    assert result.checkpoint == f"{tmp_path}/{name}/train/mine/checkpoint_1"


def test_a_server_without_conditional_writes_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any
) -> None:
    trainers = Trainers(monkeypatch)
    with serving(FakeS3("ignores", "ignores"), monkeypatch) as server:
        with pytest.raises(StoreError, match="does not implement conditional writes"):
            fit_with_ray(tiny_run(), name="mine", storage="s3://bucket/runs")
        assert server.objects == {}
    assert trainers.started == []


def test_a_run_on_a_busy_cluster_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainers = Trainers(monkeypatch, (1, STUCK), (0, STUCK), (2, None))
    fit_with_ray(tiny_run(compute={"num_workers": 2}), name="mine", storage=str(tmp_path))
    assert trainers.started == [2, 2, 2]
    said = "run mine waits for other work on it to end: it needs 2 worker(s) of 1 CPUs and 0 GPUs, and the cluster has"
    assert [said in record.message for record in caplog.records] == [True, False, True, False]
    assert f"{said} free no nodes" in caplog.text


def test_what_a_lost_group_held_is_waited_for_before_a_run_shrinks(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    """Ray takes back a placement group some time after the run has failed."""
    trainers = Trainers(monkeypatch, (4, LOST), (4, None))
    monkeypatch.setattr(
        "raydis.train.trainer.free_nodes",
        lambda: [{"CPU": 1.0}] * (1 if len(trainers.started) == 1 and trainers.slept < 3 else 4),
    )
    fit_with_ray(tiny_run(compute={"num_workers": 4, "min_workers": 1}), name="mine", storage=str(tmp_path))
    assert trainers.started == [4, 4]
    assert trainers.slept == 3.0


@pytest.mark.parametrize("min_workers", [None, 1])
def test_a_cluster_at_zero_that_grows_is_asked_for_all_workers(
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    min_workers: int | None,
) -> None:
    trainers = Trainers(monkeypatch, (0, STUCK), (0, STUCK), (1, STUCK), (4, None), grows=True)
    compute = {"num_workers": 4, "min_workers": min_workers}
    fit_with_ray(tiny_run(compute=compute), name="mine", storage=str(tmp_path))
    assert trainers.started == [4, 4, 4, 4]
    assert "run mine waits for its autoscaler: it needs 4 worker(s)" in caplog.text


def test_a_cluster_that_cannot_grow_further_gets_a_smaller_run_which_may_grow_later(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    trainers = Trainers(monkeypatch, *[(2, STUCK)] * 5, (2, LOST), (4, None), grows=True)
    fit_with_ray(tiny_run(compute={"num_workers": 4, "min_workers": 1}), name="mine", storage=str(tmp_path))
    assert trainers.started == [4, 4, 4, 4, 4, 2, 4]


def test_an_autoscaler_has_an_hour_to_bring_what_others_bring_in_ten_minutes(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    trainers = Trainers(monkeypatch, *[(0, STUCK)] * 99, grows=True)
    with pytest.raises(ClusterError, match="run mine failed 61 times"):
        fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert len(trainers.started) == 61


# ---- one process trains a run


def test_a_run_that_another_process_trains_is_refused_with_its_holder_and_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    trainers = Trainers(monkeypatch, (1, None))
    monkeypatch.setattr("raydis.store.lease.BEAT_S", 0.1)
    monkeypatch.setattr("raydis.store.lease.POLL_S", 0.1)
    store = LocalStore(tmp_path)
    with Lease(store, "train/mine/lease.json", what="run mine").held() as first:
        with pytest.raises(
            LeaseTaken, match=rf"^run mine in {store.uri} is running elsewhere: held by process {os.getpid()} "
        ):
            fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
        first.check()
    assert trainers.started == []
    assert not store.exists("train/mine/run.json")
    fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert trainers.started == [1]


@pytest.mark.parametrize("outcome", [None, LOST, KeyboardInterrupt(), SystemExit(0)])
def test_a_run_gives_its_lease_back_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path, outcome: Any
) -> None:
    Trainers(monkeypatch, *[(1, outcome)] * 4)
    with contextlib.suppress(ClusterError, KeyboardInterrupt):
        fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert LocalStore(tmp_path).read("train/mine/lease.json") == b"{}"


def test_a_run_that_was_taken_over_does_not_start_again(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Any, tmp_path: Path
) -> None:
    trainers = Trainers(monkeypatch, (1, LOST), (1, None))
    store = LocalStore(tmp_path)
    fit = trainers.fit

    def sleep_through_a_takeover() -> Any:
        record = json.loads(store.read("train/mine/lease.json"))
        store.write("train/mine/lease.json", json.dumps({**record, "token": "theirs", "host": "b"}).encode())
        return fit()

    monkeypatch.setattr(trainers, "fit", sleep_through_a_takeover)
    with pytest.raises(LeaseLost, match=r"was taken over while .*: held by process \d+ on b since"):
        fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert trainers.started == [1]
    assert json.loads(store.read("train/mine/lease.json"))["token"] == "theirs"


def test_a_run_that_older_code_began_with_the_removed_anchor_mode_goes_on(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_run().model_dump(mode="json", exclude={"compute"})
    tree["method"]["anchors"]["mode"] = "relative"
    LocalStore(tmp_path).write("train/mine/run.json", json.dumps(tree).encode())
    trainers = Trainers(monkeypatch, (1, None))
    fit_with_ray(tiny_run(), name="mine", storage=str(tmp_path))
    assert trainers.started == [1]
    with pytest.raises(ConfigError, match=r"run mine in .* was started with another configuration"):
        fit_with_ray(tiny_run(method={"anchors": {"mode": "ramp"}}), name="mine", storage=str(tmp_path))


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_train_a_first_stage_and_then_a_model_behind_it(
    tmp_path: Path,
) -> None:
    """The discriminator comes in half-way, which must not leave a worker waiting for gradients."""
    storage = str(tmp_path / "store")
    network = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1}
    critic = {"discriminator_weight": 0.1, "discriminator_channels": [8], "discriminator_start_images": 256}
    tree = expand({"preset": "tiny", "first_stage": {"kind": "pixel"}, "method": {"kind": "vq", **network, **critic}})
    both = {"num_workers": 2}
    stage = run(
        RunConfig.model_validate({**tree, "evaluation": {"protocol": "none"}, "compute": both}), storage=storage
    )
    assert stage.record.reconstruction is not None
    assert stage.record.reconstruction.psnr > 5.0
    assert stage.record.scores is None
    assert Registry(LocalStore(storage)).register(open_checkpoint(Path(stage.checkpoint)), "stage") == 1

    first_stage = {"kind": "vq", "checkpoint": "stage@1", **network}
    tree = expand({"preset": "tiny", "first_stage": first_stage, "compute": both})
    result = run(RunConfig.model_validate(tree), storage=storage)
    assert result.record.scores is not None
    weights = open_checkpoint(Path(result.checkpoint)).weights()
    source = open_checkpoint(Path(stage.checkpoint)).weights()
    name = "codebook.embeddings"
    assert torch.equal(weights[f"first_stage.{name}"], source[f"network.{name}"])
