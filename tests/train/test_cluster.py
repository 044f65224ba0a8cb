"""How many runs a cluster holds, and the environment that Ray is given."""

from __future__ import annotations

import errno
import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from raydis.config import ComputeConfig
from raydis.errors import DataError, ResourceError
from raydis.store import LocalStore
from raydis.train.cluster import (
    check_socket_paths,
    check_storage,
    choose_device,
    choose_num_workers,
    cluster_grows,
    cluster_nodes,
    fetch_result,
    free_nodes,
    has_autoscaler,
    holds,
    lasting_storage,
    max_parallel_runs,
    ray_cluster,
    set_environment,
    worker_resources,
)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/home/someone"})


@pytest.mark.parametrize(
    ("compute", "nodes", "runs"),
    [
        ({}, [{"CPU": 2}], 2),
        ({"num_cpus": 1.5}, [{"CPU": 4}], 2),
        ({"num_cpus": 2}, [{"CPU": 3}, {"CPU": 3}], 2),  # a worker does not span nodes
        ({"num_workers": 2}, [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}], 1),  # a run does
        ({"num_workers": 2, "num_cpus": 2}, [{"CPU": 8}], 2),
        ({"num_gpus": 1, "num_cpus": 4}, [{"CPU": 16, "GPU": 2}], 2),
        ({"num_gpus": 0.5}, [{"CPU": 16, "GPU": 2}], 4),
        ({"num_gpus": 0.4}, [{"CPU": 16, "GPU": 2}], 4),  # a fraction never spans two GPUs
        ({"device": "cuda"}, [{"CPU": 16, "GPU": 3}], 3),
        ({"num_workers": 4, "min_workers": 2}, [{"CPU": 3}], 1),  # not a whole one, but one with fewer workers
    ],
)
def test_a_cluster_holds_as_many_runs_as_its_nodes_fit(compute: Any, nodes: Any, runs: int) -> None:
    assert max_parallel_runs(ComputeConfig(**compute), nodes) == runs


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (
            {"num_cpus": 4},
            r"needs 1 worker\(s\) of 4 CPUs and 0 GPUs, but the cluster has nodes with 2 CPUs and 0 GPUs",
        ),
        ({"device": "cuda"}, r"1 CPUs and 1 GPUs, but .*\(compute\.device=cpu for none\)"),
        ({"num_gpus": 2}, r"1 CPUs and 2 GPUs"),
        ({"num_workers": 3}, r"needs 3 worker\(s\) of 1 CPUs"),
        ({"num_workers": 4, "min_workers": 3}, r"needs 3 worker\(s\) of 1 CPUs"),
    ],
)
def test_a_run_that_cannot_be_placed_is_refused_with_what_there_is(compute: Any, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        max_parallel_runs(ComputeConfig(**compute), [{"CPU": 2}])


@pytest.mark.parametrize(
    ("compute", "nodes", "num_workers"),
    [
        ({"num_workers": 4}, [{"CPU": 3}], 4),  # without `min_workers` it waits for all of them
        ({"num_workers": 4, "min_workers": 1}, [{"CPU": 8}], 4),
        ({"num_workers": 4, "min_workers": 1}, [{"CPU": 3}, {}], 2),  # three do not share 32 images equally
        ({"num_workers": 4, "min_workers": 1}, [{"CPU": 1}], 1),
        ({"num_workers": 4, "min_workers": 2}, [{"CPU": 1}], 2),
        ({"num_workers": 4, "min_workers": 3}, [{"CPU": 3}], 4),
        ({"num_workers": 4, "min_workers": 1, "num_gpus": 0.4}, [{"CPU": 8, "GPU": 1}], 2),
    ],
)
def test_a_start_takes_as_many_workers_as_there_are_places_and_share_the_batch(
    compute: Any, nodes: Any, num_workers: int
) -> None:
    assert choose_num_workers(ComputeConfig(**compute), 32, nodes) == num_workers


def test_device_cuda_without_a_number_reserves_a_whole_gpu() -> None:
    assert worker_resources(ComputeConfig(device="cuda")) == {"CPU": 1, "GPU": 1}
    assert worker_resources(ComputeConfig(device="cuda", num_gpus=0.5)) == {"CPU": 1, "GPU": 0.5}
    assert worker_resources(ComputeConfig(num_cpus=2)) == {"CPU": 2}


def test_a_device_left_open_is_a_gpu_where_a_node_has_one() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert worker_resources(choose_device(ComputeConfig(), nodes)) == {"CPU": 1, "GPU": 1}
    assert worker_resources(choose_device(ComputeConfig(num_gpus=0.25), nodes)) == {"CPU": 1, "GPU": 0.25}
    assert choose_device(ComputeConfig(), nodes[:1]).device == "cpu"
    assert choose_device(ComputeConfig(device="cpu", num_gpus=1), nodes).device == "cpu"


def test_a_graph_is_refused_where_no_node_has_a_gpu() -> None:
    compute = ComputeConfig(compile="graph")
    assert choose_device(compute, [{"CPU": 4}, {"GPU": 1}]).device == "cuda"
    with pytest.raises(ResourceError, match=r"compile=graph .* no node of the cluster has a GPU: set"):
        choose_device(compute, [{"CPU": 4}])


def test_what_a_worker_reserves_is_written_down_where_it_has_a_gpu() -> None:
    """A worker's share of a GPU's memory follows from it."""
    nodes = [{"CPU": 8.0, "GPU": 1.0}]
    assert choose_device(ComputeConfig(), nodes).num_gpus == 1
    assert choose_device(ComputeConfig(device="cuda"), nodes).num_gpus == 1
    assert choose_device(ComputeConfig(num_gpus=0.25), nodes).num_gpus == 0.25
    assert choose_device(ComputeConfig(device="cpu"), nodes).num_gpus == 0


def test_a_cluster_that_grows_may_bring_the_gpu_that_a_run_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_device(ComputeConfig(compile="graph"), [], grows=True).device == "cuda"
    assert choose_device(ComputeConfig(num_gpus=1), [], grows=True).device == "cuda"
    assert not caplog.records
    assert choose_device(ComputeConfig(), [{"CPU": 4}], grows=True).device == "cpu"
    assert "no node has a GPU now: the run computes on CPUs. Set compute.device=cuda to wait for" in caplog.text


BY_HAND = "node_" + 56 * "a"


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        ([], False),
        ([BY_HAND], False),  # `ray start --head` by hand, and ray.init
        ([BY_HAND, "", "node_" + 56 * "0"], False),
        (["ray.head.default"], True),  # the first autoscaler's report, at zero workers
        ([BY_HAND, "headgroup"], True),  # the nodes of the second tell
        (["node_group"], True),  # a name that somebody chose
    ],
)
def test_a_cluster_grows_where_its_nodes_have_types(types: list[str], grows: bool) -> None:
    assert has_autoscaler(types) is grows


def test_places_are_counted_on_each_node() -> None:
    compute = ComputeConfig(num_cpus=2)
    assert holds(compute, 2, [{"CPU": 3}, {"CPU": 2}])
    assert not holds(compute, 3, [{"CPU": 3}, {"CPU": 3}])
    assert holds(compute, 0, [])


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_what_others_have_reserved_is_not_free_and_a_cluster_of_ones_own_does_not_grow() -> None:
    def free_cpus() -> float:
        return sum(node.get("CPU", 0) for node in free_nodes())

    def comes_to(cpus: float) -> bool:
        return any(free_cpus() == cpus or time.sleep(0.1) for _ in range(100))

    total = sum(node["CPU"] for node in cluster_nodes())
    assert comes_to(total)
    group = ray.util.placement_group([{"CPU": 1}] * 3)
    assert group.wait(60)
    assert comes_to(total - 3)
    assert sum(node["CPU"] for node in cluster_nodes()) == total
    ray.util.remove_placement_group(group)
    assert comes_to(total)
    assert not cluster_grows()


def test_device_cpu_reserves_no_gpu() -> None:
    assert worker_resources(ComputeConfig(device="cpu", num_gpus=1)) == {"CPU": 1}
    assert max_parallel_runs(ComputeConfig(device="cpu", num_gpus=1), [{"CPU": 2.0}]) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_one_node_always_sees_its_own_folder(tmp_path: Path) -> None:
    check_storage(LocalStore(tmp_path), "absent")


def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = (True, True, False)
    nodes = [{"Alive": on, "NodeID": str(i), "NodeManagerAddress": f"10.0.0.{i}"} for i, on in enumerate(alive)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("raydis.train.cluster._sees", lambda node, path: node == "0")
    with pytest.raises(ResourceError, match=r"is a folder that node 10\.0\.0\.1 does not see: use --storage s3://"):
        check_storage(LocalStore(tmp_path), "spec.json")


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_an_error_of_ours_in_a_task_comes_back_as_itself() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DataError, match=r"^no file x$"):
        fetch_result(ray.remote(fail).remote(DataError("no file x")))
    with pytest.raises(ValueError, match="boom"):
        fetch_result(ray.remote(fail).remote(ValueError("boom")))


@pytest.mark.usefixtures("clean_environment")
def test_s3_checksums_are_switched_off_only_for_servers_other_than_aws() -> None:
    assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in set_environment()
    os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9000"
    variables = set_environment()
    assert variables["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert variables["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "when_required"
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"


@pytest.mark.usefixtures("clean_environment")
def test_the_users_environment_wins_and_no_secret_is_handed_on() -> None:
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "AWS_SECRET_ACCESS_KEY": "hush"}
    variables = set_environment()
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    assert "hush" not in variables.values()


@pytest.mark.usefixtures("clean_environment")
def test_a_jobs_relative_storage_lies_below_home_because_its_folder_is_deleted() -> None:
    assert lasting_storage("runs") == "runs"
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    assert lasting_storage("runs") == str(Path.home() / "runs")
    assert lasting_storage("/data/runs") == "/data/runs"
    assert lasting_storage("s3://bucket/runs") == "s3://bucket/runs"


# ---- a local Ray that does not start


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_told_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setenv(variable, "/tmp/" + "x" * 100)
    told = rf"{variable}=/tmp/x+ is too long for Ray's sockets: it has 105 bytes, at most \d+ fit\. Set RAY_TMPDIR"
    with pytest.raises(ResourceError, match=told), ray_cluster():
        pass


@pytest.mark.usefixtures("clean_environment")
def test_the_longest_temporary_folder_that_is_allowed_is_the_longest_that_ray_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private.utils import validate_socket_filepath

    def socket(folder: str) -> str:
        return f"{folder}/ray/session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}/sockets/plasma_store"

    longest = next(size for size in range(107, 0, -1) if len(socket("x" * size)) <= 107)
    validate_socket_filepath(socket("x" * longest))
    with pytest.raises(OSError, match="cannot exceed 107"):
        validate_socket_filepath(socket("x" * (longest + 1)))
    monkeypatch.setenv("RAY_TMPDIR", "x" * longest)
    check_socket_paths()
    monkeypatch.setenv("RAY_TMPDIR", "é" * (longest // 2 + 1))
    with pytest.raises(ResourceError, match=f"at most {longest} fit"):
        check_socket_paths()


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("The current node timed out during startup."), "The current node timed out during startup"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"), "cannot use /tmp/ray: No space left on device"),
        (ConnectionError("the GCS does not answer"), "the GCS does not answer"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ResourceError, match="Ray did not start on this machine: ") as caught, ray_cluster():
        pass
    assert words in str(caught.value)
    assert "/tmp/r/ray/session_latest/logs" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("clean_environment")
def test_a_caller_who_handles_sigterm_keeps_it_when_ray_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)

    def mine(number: int, frame: object) -> None: ...

    monkeypatch.setattr("ray.init", take)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with ray_cluster():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("clean_environment")
def test_a_signal_that_comes_while_ray_starts_is_the_callers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise SystemExit(15)  # what Ray's own handler does

    def mine(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    monkeypatch.setattr("ray.init", stopped)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, ray_cluster():
            pass
        assert caught.value.args == (signal.SIGTERM,)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
