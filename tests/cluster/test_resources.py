"""How many workers and runs a cluster holds, and on which device."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray

from raydis.cluster.resources import (
    choose_device,
    choose_num_workers,
    cluster_grows,
    cluster_nodes,
    free_nodes,
    has_autoscaler,
    holds,
    max_parallel_runs,
    worker_resources,
)
from raydis.config import ComputeConfig
from raydis.errors import ResourceError


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
        ({"memory_bytes": 2**30}, [{"CPU": 8, "memory": 3.5 * 2**30}], 3),
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
        ({"memory_bytes": 2**30}, r"0 GPUs and 1 GiB of memory, but the cluster .* or compute\.memory_bytes"),
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
