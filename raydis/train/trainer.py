"""Train a run with Ray Train's TorchTrainer: start its workers, restart them after failures, and return the result."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import train
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydis.cluster.connect import ray_cluster, set_environment
from raydis.cluster.resources import (
    SETTLE_S,
    choose_device,
    choose_num_workers,
    cluster_grows,
    cluster_nodes,
    describe_nodes,
    describe_workers,
    free_nodes,
    gpus_per_worker,
    holds,
    max_parallel_runs,
    worker_resources,
)
from raydis.cluster.storage import check_storage
from raydis.config import RunConfig
from raydis.engine.plan import budget_warnings
from raydis.engine.record import RunRecord
from raydis.errors import ClusterError, RaydisError, explain, final_error
from raydis.store import open_store
from raydis.store.lease import Lease
from raydis.train.claim import RUN_FILE, claim, run_name
from raydis.train.worker import train_worker

log = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
MAX_RESTARTS = 3
MAX_FAILED_STARTS = 10  # in a row, a minute each: the cluster is full, or has not noticed yet that a node is lost
MAX_FAILED_STARTS_GROWING = 60  # the same, if an autoscaler may be starting nodes with large container images
GROWING_STARTS = 5  # failed starts for which the autoscaler is asked for all workers, before a run takes fewer


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        checkpoint: its last checkpoint, a path or s3:// URI.
        record: its last record.
    """

    checkpoint: str
    record: RunRecord


class SendReports(train.UserCallback):
    """A callback in Ray Train's controller that puts the reports of rank 0 into a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._queue.put(metrics[0])


def run(
    config: RunConfig,
    *,
    storage: str = "runs",
    name: str | None = None,
    on_report: Callable[[RunRecord], None] | None = None,
) -> TrainResult:
    """Train one configuration under Ray Train, on this machine or on the Ray cluster that it belongs to.

    Args:
        storage: folder or s3://bucket/prefix; the folder of the run is `train/NAME` below it.
        name: name of the run; by default the data set and a hash of the configuration, so that the same call continues
            an interrupted run.
        on_report: called with each record of the run.

    Raises:
        ClusterError: the workers failed, or did not start, too often. The same call continues the run.
        ConfigError: a run with this name has another configuration.
        LeaseTaken: another process trains this run.
        LeaseLost: another process has taken the run over, because this one could not renew its lease for a minute.
        RegistryError: a first stage's `name@alias` does not exist.
        ResourceError: the cluster cannot hold the run, and has no autoscaler that might add nodes.
        RaydisError: any other error of a worker.
    """
    for warning in budget_warnings(config):  # a worker warns as well, but only in one of Ray's log files
        log.warning(warning)
    with ray_cluster():
        nodes, grows = cluster_nodes(), cluster_grows()
        config = config.model_copy(update={"compute": choose_device(config.hardware, nodes, grows=grows)})
        if not grows:
            max_parallel_runs(config.compute, nodes)
        with _forward_reports(on_report) as callbacks:
            return fit_with_ray(config, name=name, storage=storage, callbacks=callbacks)


def fit_with_ray(
    config: RunConfig,
    *,
    name: str | None = None,
    storage: str,
    parent: dict[str, str] | None = None,
    callbacks: Sequence[train.UserCallback] = (),
) -> TrainResult:
    """Train on the connected cluster with the workers that `config.compute` allows; arguments and errors as in `run`.

    If a worker, node or controller dies, the run is restarted from its last checkpoint, up to MAX_RESTARTS times. If
    workers do not start, they are started again, up to MAX_FAILED_STARTS times in a row.

    Ray's own handling of failures is switched off: it does not cover the death of a controller, and would repeat runs
    that fail with a RaydisError. Its elasticity is switched off as well: it knows neither by which numbers of workers a
    batch can be divided, nor that a fraction of a GPU must be on a single GPU, and it discards the steps since the last
    checkpoint when it adds workers.
    """
    set_environment()
    store = open_store(storage)
    name = name or run_name(store, config)
    lease = Lease(store, f"train/{name}/{LEASE_FILE}", what=f"run {name}")
    with lease.held():
        config = claim(store, name, config)
        check_storage(store, f"train/{name}/{RUN_FILE}")
        result = _fit(config, lease, name=name, parent=parent, callbacks=callbacks)
    assert result.checkpoint is not None  # a session's last report has a checkpoint
    return TrainResult(
        checkpoint=str(store.location.at_pyarrow_path(result.checkpoint.path)),
        record=RunRecord.from_ray(result.metrics or {}),
    )


def _fit(
    config: RunConfig,
    lease: Lease,
    *,
    name: str,
    parent: dict[str, str] | None,
    callbacks: Sequence[train.UserCallback],
) -> train.Result:
    """Start workers until the run is complete, each time as many as the cluster has room for."""
    restarts, failed_starts = 0, 0
    while True:
        lease.check()
        num_workers = _num_workers(config, name, failed_starts, again=bool(restarts or failed_starts))
        trainer = _trainer(config, num_workers, name=name, lease=lease, parent=parent, callbacks=callbacks)
        try:
            return trainer.fit()
        except (TrainingFailedError, RayError) as error:
            if (ours := _raydis_error(error)) is not None:
                raise ours from None
            if isinstance(error, train.ControllerError):
                failed_starts += 1
            else:
                restarts, failed_starts = restarts + 1, 0  # its workers had started
            patient = failed_starts > MAX_FAILED_STARTS and cluster_grows()
            most = MAX_FAILED_STARTS_GROWING if patient else MAX_FAILED_STARTS
            if restarts > MAX_RESTARTS or failed_starts > most:
                raise ClusterError(
                    f"run {name} failed {restarts + failed_starts} times, the last time with: {_last_line(error)}. "
                    f"The same command continues it from its last checkpoint in {lease.store.location / 'train' / name}"
                ) from error
            log.warning("run %s is restarted: %s", name, _last_line(error))
        except SystemExit as stop:  # Ray turns Ctrl-C into an exit with code 0
            raise KeyboardInterrupt from stop


def _num_workers(config: RunConfig, name: str, failed_starts: int, *, again: bool) -> int:
    """Return the number of workers of the next start, and log a warning if the cluster has no room for all of them.

    The resources of the last workers become free within seconds, and an autoscaler adds nodes within minutes. A run
    waits for both before it continues with fewer workers.
    """
    compute, batch_size = config.compute, config.train.batch_size
    wanted, free = compute.num_workers, free_nodes()
    for _ in range(SETTLE_S if again else 0):
        if holds(compute, wanted, free):
            break
        time.sleep(1.0)
        free = free_nodes()
    number = choose_num_workers(compute, batch_size, free)
    grows = not holds(compute, wanted, free) and cluster_grows()
    if grows and failed_starts < GROWING_STARTS:
        number = wanted
    if not holds(compute, number, free):
        waits_for = "its autoscaler" if grows else "other work on it to end"
        found, asked = describe_nodes(free), describe_workers(compute, number)
        log.warning("run %s waits for %s: it needs %s, and the cluster has free %s", name, waits_for, asked, found)
    elif number < wanted:
        log.warning("run %s: no room for all of its %d workers, it continues with %d", name, wanted, number)
    return number


def _trainer(
    config: RunConfig,
    num_workers: int,
    *,
    name: str,
    lease: Lease,
    parent: dict[str, str] | None,
    callbacks: Sequence[train.UserCallback],
) -> TorchTrainer:
    gpus = gpus_per_worker(config.compute)
    held = {"storage": lease.store.uri, "key": lease.key, "token": lease.token, "what": lease.what}
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "parent": parent, "lease": held},
        # NCCL does not allow two ranks on one GPU.
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=gpus > 0,
            resources_per_worker=worker_resources(config.compute),
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=(lease.store.location / "train").pyarrow_uri,
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )


@contextlib.contextmanager
def _forward_reports(on_report: Callable[[RunRecord], None] | None) -> Iterator[list[train.UserCallback]]:
    """Yield callbacks for Ray Train, through which `on_report` is called in this process with every report."""
    if on_report is None:
        yield []
        return
    # On this node, so that the queue survives the loss of any other.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def forward() -> None:
        while (row := queue.get()) is not None:
            on_report(RunRecord.from_ray(row))

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield [SendReports(queue)]
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()


def _raydis_error(error: BaseException) -> RaydisError | None:
    """Return the error of a worker if a restart would repeat it: a RaydisError, or a full disk. Otherwise None."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})  # by rank
    return next((final for _, cause in sorted(failures.items()) if (final := final_error(cause))), None)


def _last_line(error: BaseException) -> str:
    return explain(error).line
