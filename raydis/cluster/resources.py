"""Compare the resources that a run needs with those of a Ray cluster: devices, workers, and an autoscaler."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

from raydis.config import ComputeConfig
from raydis.errors import ResourceError

Node = Mapping[str, float]  # resources under Ray's names: CPU, GPU, ...
SETTLE_S = 10  # time in which Ray frees the resources of work that has ended
DEFAULT_NUM_GPUS = 1.0  # of a worker on `cuda`; a guess until tests.benchmarks.packing is run on a GPU


def choose_device(compute: ComputeConfig, nodes: Sequence[Node], *, grows: bool = False) -> ComputeConfig:
    """Replace `device: auto` by `cuda` if any node has a GPU, else by `cpu`, and set the number of GPUs of a worker.

    The decision cannot be left to the workers: without a reservation, all of them would see and use the first GPU of
    their node.

    Args:
        compute: the configuration.
        nodes: resources of each node, under Ray's names `CPU` and `GPU`.
        grows: whether an autoscaler may add nodes. It adds nodes with GPUs only for a run that asks for GPUs.

    Raises:
        ResourceError: `compute.compile` needs a GPU, and no node has one.
    """
    if compute.device == "auto":
        compute = compute.model_copy(update={"device": _device(compute, nodes, grows)})
    return compute.model_copy(update={"num_gpus": gpus_per_worker(compute)}) if compute.device == "cuda" else compute


def _device(compute: ComputeConfig, nodes: Sequence[Node], grows: bool) -> str:
    captures = compute.compile in ("graph", "full")
    if compute.num_gpus > 0 or any(node.get("GPU", 0) > 0 for node in nodes) or (grows and captures):
        return "cuda"
    if captures:
        raise ResourceError(
            f"compute.compile={compute.compile} captures a CUDA graph, but no node of the cluster has a GPU: "
            "set compute.compile=off or compute.compile=blocks"
        )
    if grows:
        log.warning("no node has a GPU now: the run computes on CPUs. Set compute.device=cuda to wait for a GPU's node")
    return "cpu"


def gpus_per_worker(compute: ComputeConfig) -> float:
    """Return the number of GPUs of one worker: 0 with `device: cpu`, DEFAULT_NUM_GPUS with `cuda` and no number."""
    if compute.device == "cpu":
        return 0.0
    return compute.num_gpus or (DEFAULT_NUM_GPUS if compute.device == "cuda" else 0.0)


def worker_resources(compute: ComputeConfig) -> dict[str, float]:
    """Return the resources that Ray reserves for one worker."""
    gpus = gpus_per_worker(compute)
    memory = {"memory": float(compute.memory_bytes)} if compute.memory_bytes else {}
    return {"CPU": compute.num_cpus} | ({"GPU": gpus} if gpus else {}) | memory


def max_parallel_runs(compute: ComputeConfig, nodes: Sequence[Node]) -> int:
    """Return how many runs of this size fit on a cluster at once if nothing else uses it.

    Args:
        compute: the configuration of a run.
        nodes: resources of each node, under Ray's names `CPU` and `GPU`.

    Raises:
        ResourceError: not even one run fits.
    """
    workers = sum(_workers_on(compute, node) for node in nodes)
    fewest = compute.min_workers or compute.num_workers
    if workers >= fewest:
        return max(workers // compute.num_workers, 1)
    raise ResourceError(
        f"a run needs {describe_workers(compute, fewest)}, but the cluster has {describe_nodes(nodes)}: lower "
        "compute.num_workers, compute.min_workers, compute.num_cpus or compute.num_gpus (compute.device=cpu for none)"
        + (
            ", or compute.memory_bytes, or what makes the method ask for that much memory"
            if compute.memory_bytes
            else ""
        )
    )


def choose_num_workers(compute: ComputeConfig, batch_size: int, nodes: Sequence[Node]) -> int:
    """Return the largest number of workers, between `min_workers` and `num_workers`, that fits on the free nodes.

    If none fits, return the smallest number, for which Ray waits.

    Args:
        compute: the configuration of a run.
        batch_size: a multiple of num_workers. Only numbers that divide it are considered.
        nodes: the free resources of each node.
    """
    places = sum(_workers_on(compute, node) for node in nodes)
    fewest = compute.min_workers or compute.num_workers
    allowed = [number for number in range(fewest, compute.num_workers + 1) if batch_size % number == 0]
    return max((number for number in allowed if number <= places), default=allowed[0])


def holds(compute: ComputeConfig, number: int, nodes: Sequence[Node]) -> bool:
    """Return whether that number of workers fits on the nodes."""
    return sum(_workers_on(compute, node) for node in nodes) >= number


def describe_workers(compute: ComputeConfig, number: int) -> str:
    """Return in words what resources that number of workers needs."""
    memory = f" and {compute.memory_bytes / 2**30:.2g} GiB of memory" if compute.memory_bytes else ""
    return f"{number} worker(s) of {compute.num_cpus:g} CPUs and {gpus_per_worker(compute):g} GPUs{memory}"


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Return in words what resources the nodes have."""
    found = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return f"nodes with {found}" if found else "no nodes"


def cluster_nodes() -> list[Node]:
    """Return the resources of each living node of the connected cluster, whether they are free or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """Return the resources of each living node of the connected cluster that are not reserved at this moment.

    Resources that a run has just released may be missing: Ray takes about a second to count them as free.
    """
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return [
        {usage.resource_name: usage.total - usage.used for usage in node.resource_usage.usage}
        for node in (*status.active_nodes, *status.idle_nodes)
        if node.resource_usage is not None
    ]


def cluster_grows() -> bool:
    """Return whether an autoscaler adds nodes to the connected cluster.

    Ray has no interface for this question, but its autoscalers give names to the types of nodes. Version 1 writes them
    to a report in the state of the cluster, even before there is a node. Version 2 attaches them to the nodes. KubeRay
    names the nodes of clusters of fixed size as well. Such a cluster is taken for one that grows, so a run that does
    not fit waits there, with a message, instead of being refused.
    """
    if report := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        return has_autoscaler(json.loads(report).get("autoscaler_report", {}).get("node_type_mapping", {}).values())
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return has_autoscaler(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))


def has_autoscaler(node_types: Iterable[str]) -> bool:
    """Return whether any type has a proper name. Ray calls the types of nodes that were added by hand `node_ID`."""
    return any(name and not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in node_types)


def _workers_on(compute: ComputeConfig, node: Node) -> int:
    """Return how many workers fit on a node. A worker's fraction of a GPU cannot be split over two GPUs."""
    by_cpu = math.floor(node.get("CPU", 0.0) / compute.num_cpus)
    if compute.memory_bytes:
        by_cpu = min(by_cpu, math.floor(node.get("memory", 0.0) / compute.memory_bytes))
    gpus, have = gpus_per_worker(compute), node.get("GPU", 0.0)
    if not gpus:
        return by_cpu
    by_gpu = math.floor(have / gpus) if gpus >= 1 else math.floor(have) * math.floor(1 / gpus)
    return min(by_cpu, by_gpu)


log = logging.getLogger(__name__)
