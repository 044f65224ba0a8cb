"""The Ray cluster that a command works on: its own local one, or the one it finds itself on."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import AuthenticationError, RayTaskError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydis.config import ComputeConfig
from raydis.errors import RaydisError, ResourceError, explain
from raydis.store import Location, Store

log = logging.getLogger(__name__)

Node = Mapping[str, float]  # resources under Ray's names: CPU, GPU, ...

MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # of the path of a Unix socket
OBJECT_STORE_BYTES = 128 * 2**20  # what raydis sends through it is configurations and pictures
DEFAULT_NUM_GPUS = 1.0  # of a worker on `cuda`; to be set from tests.benchmarks.packing, not measured on a GPU yet
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # at the default of 2 s every report stalls that long
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own progress display
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative data.path means the same to the command and to its workers
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # it warns of every checkpoint that is kept
}
LOCAL_DEFAULTS = {"RAY_worker_niceness": "0"}
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def set_environment() -> dict[str, str]:
    """Set what Ray, Tune, Train and S3 clients read from the environment, where the user has not; returns all of it.

    S3 servers other than AWS refuse the checksums that pyarrow sends by default, or store them with the data.
    """
    wanted = dict(DEFAULTS)
    endpoints = {name: os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)}
    if endpoints:
        wanted |= dict.fromkeys(CHECKSUMS, "when_required")
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in wanted} | endpoints


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """A connection to Ray for the length of a `with`.

    Inside of a job, or with RAY_ADDRESS set, that is the cluster there; otherwise a local one, with a token of its
    own, that ends with the block. A connection that exists already is used and left alone.

    Raises:
        ResourceError: no cluster at RAY_ADDRESS, one that refuses our token, or a local one that does not start.
    """
    if ray.is_initialized():
        yield
        return
    variables = set_environment()
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # a job may have set the same variables itself
    address = os.environ.get("RAY_ADDRESS")
    try:
        with _keep_sigterm():
            if address:
                ray.init(address, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level=logging.ERROR)
            else:
                _start_local()
    except (ConnectionError, AuthenticationError) as error:
        raise ResourceError(
            f"no Ray cluster at RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}. Unset RAY_ADDRESS to run "
            "on this machine alone; if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def lasting_storage(storage: str) -> str:
    """Where results go: a relative folder of a Ray job is below home, for Ray deletes the job's working directory."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return str(Location.parse(storage, relative_to=Path.home())) if in_job else storage


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Give SIGTERM back to a caller who handles it: Ray's handler ends the process with 1 and prints C++ stacks."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # by Ray's handler, of a signal that came meanwhile
        handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def check_socket_paths() -> None:
    """Raise ResourceError where the names of Ray's sockets would be longer than the system allows, and name the cause.

    Ray puts them below RAY_TMPDIR, TMPDIR or /tmp.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[variable] if variable else "/tmp"
    below = f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store"
    found, allowed = len(os.fsencode(folder)), MAX_SOCKET_BYTES - len(below)
    if found > allowed:
        raise ResourceError(
            f"the temporary folder {variable}={folder} is too long for Ray's sockets: it has {found} bytes, at most "
            f"{allowed} fit. Set RAY_TMPDIR to a shorter folder, e.g. RAY_TMPDIR=/tmp"
        )


def _start_local() -> None:
    check_socket_paths()
    for name, value in LOCAL_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Token mode is Ray's default for a new cluster. It would use the one token in the home folder, and write it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:  # Ray raises OSError, RuntimeError or a bare Exception, whatever its reason is
        ray.shutdown()  # of what has started already
        raise ResourceError(
            f"Ray did not start on this machine: {explain(error).line}. A busy machine may need another try; Ray's "
            f"logs lie in {os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or '/tmp'}/ray/session_latest/logs"
        ) from error


def fetch_result(reference: Any) -> Any:
    """`ray.get`, where an error of ours comes back as itself instead of wrapped in a traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaydisError):
            raise error.cause from None
        if "No module named 'raydis'" in str(error):
            raise ResourceError(
                "the cluster's workers cannot import raydis: install it on every node, or submit the command as a job "
                "with `ray job submit --working-dir .`"
            ) from error
        raise


def choose_device(compute: ComputeConfig, nodes: Sequence[Node], *, grows: bool = False) -> ComputeConfig:
    """Decide `device: auto` for a cluster, a GPU a worker where any node has one, and write down its number of GPUs.

    Left to the workers, those without a reservation would all see and take a node's first GPU.

    Args:
        nodes: resources of each node, under Ray's names `CPU` and `GPU`.
        grows: more nodes may come; only what asks for a GPU is then sure to get one.

    Raises:
        ResourceError: `compute.compile` wants a GPU, and no node has one.
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
    """GPUs of one worker: none with `device: cpu`; DEFAULT_NUM_GPUS with `cuda` and no number."""
    if compute.device == "cpu":
        return 0.0
    return compute.num_gpus or (DEFAULT_NUM_GPUS if compute.device == "cuda" else 0.0)


def worker_resources(compute: ComputeConfig) -> dict[str, float]:
    """What Ray reserves for one worker."""
    gpus = gpus_per_worker(compute)
    return {"CPU": compute.num_cpus} | ({"GPU": gpus} if gpus else {})


def max_parallel_runs(compute: ComputeConfig, nodes: Sequence[Node]) -> int:
    """Return how many runs of this size a cluster holds at once when nothing else runs on it.

    Args:
        nodes: resources of each node, under Ray's names `CPU` and `GPU`.

    Raises:
        ResourceError: not even one.
    """
    workers = sum(_workers_on(compute, node) for node in nodes)
    fewest = compute.min_workers or compute.num_workers
    if workers >= fewest:
        return max(workers // compute.num_workers, 1)
    raise ResourceError(
        f"a run needs {describe_workers(compute, fewest)}, but the cluster has {describe_nodes(nodes)}: lower "
        "compute.num_workers, compute.min_workers, compute.num_cpus or compute.num_gpus (compute.device=cpu for none)"
    )


def choose_num_workers(compute: ComputeConfig, batch_size: int, nodes: Sequence[Node]) -> int:
    """Return how many workers a start takes: the most, of `min_workers` to `num_workers`, that there is a place for.

    Args:
        batch_size: a multiple of num_workers; only numbers that share it equally count.
        nodes: what is free on each node. Where it holds none of the numbers the result is the least: Ray waits for it.
    """
    places = sum(_workers_on(compute, node) for node in nodes)
    fewest = compute.min_workers or compute.num_workers
    allowed = [number for number in range(fewest, compute.num_workers + 1) if batch_size % number == 0]
    return max((number for number in allowed if number <= places), default=allowed[0])


def holds(compute: ComputeConfig, number: int, nodes: Sequence[Node]) -> bool:
    """Return whether there is a place for so many workers."""
    return sum(_workers_on(compute, node) for node in nodes) >= number


def describe_workers(compute: ComputeConfig, number: int) -> str:
    """What a run asks for, in words."""
    return f"{number} worker(s) of {compute.num_cpus:g} CPUs and {gpus_per_worker(compute):g} GPUs"


def describe_nodes(nodes: Sequence[Node]) -> str:
    """What there is, in words."""
    found = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return f"nodes with {found}" if found else "no nodes"


def cluster_nodes() -> list[Node]:
    """Return the resources of each living node of the connected cluster, whoever uses them."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """Return what nobody has reserved on each living node of the connected cluster at this moment.

    What a run has just given up may still be missing, for Ray takes it back after a second or so.
    """
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return [
        {usage.resource_name: usage.total - usage.used for usage in node.resource_usage.usage}
        for node in (*status.active_nodes, *status.idle_nodes)
        if node.resource_usage is not None
    ]


def cluster_grows() -> bool:
    """Return whether an autoscaler adds nodes to the connected cluster.

    Ray has no question for it, but its autoscalers give nodes types with names: the first in a report that it leaves in
    the cluster's state, even before there is a node; the second with the nodes themselves. KubeRay names the nodes of
    its clusters of fixed size as well, which are then taken for growing: a run waits there, and says so, where it would
    be refused elsewhere.
    """
    if report := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        return has_autoscaler(json.loads(report).get("autoscaler_report", {}).get("node_type_mapping", {}).values())
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return has_autoscaler(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))


def has_autoscaler(node_types: Iterable[str]) -> bool:
    """Return whether any type has a name of its own: nodes that were joined by hand have types called `node_ID`."""
    return any(name and not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in node_types)


def check_storage(store: Store, key: str) -> None:
    """Look for a file that was just written from every node: a local folder is often one node's own.

    Raises:
        ResourceError: a node does not see it.
    """
    folder = store.location.folder
    if folder is None:
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    path = folder / key
    blind = [node["NodeManagerAddress"] for node in nodes if len(nodes) > 1 and not _sees(node["NodeID"], path)]
    if blind:
        raise ResourceError(
            f"{folder} is a folder that node {', '.join(blind)} does not see: use --storage s3://bucket/prefix, or "
            "a folder that all nodes share"
        )


def _sees(node: str, path: Path) -> bool:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.get(ray.remote(os.path.exists).options(num_cpus=0, scheduling_strategy=strategy).remote(path))


def _workers_on(compute: ComputeConfig, node: Node) -> int:
    """Workers that fit on a node; a fraction of a GPU never spans two."""
    by_cpu = math.floor(node.get("CPU", 0.0) / compute.num_cpus)
    gpus, have = gpus_per_worker(compute), node.get("GPU", 0.0)
    if not gpus:
        return by_cpu
    by_gpu = math.floor(have / gpus) if gpus >= 1 else math.floor(have) * math.floor(1 / gpus)
    return min(by_cpu, by_gpu)
