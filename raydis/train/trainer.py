"""A run under Ray Train's TorchTrainer: start, restart after failures, result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import train
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydis.config import RunConfig
from raydis.engine.plan import budget_warnings
from raydis.errors import ConfigError, FitError, RaydisError, explain, final_error
from raydis.registry import locate_first_stage
from raydis.store import Store, StoreConflict, open_store
from raydis.train.cluster import (
    check_storage,
    choose_device,
    choose_num_workers,
    cluster_nodes,
    gpus_per_worker,
    max_parallel_runs,
    ray_cluster,
    set_environment,
    worker_resources,
)
from raydis.train.worker import train_worker

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
MAX_RESTARTS = 3
MAX_FAILED_STARTS = 10  # of the workers, a minute each: the cluster is full, growing, or yet to miss a node


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        name: of the run.
        folder: where it lies, a path or s3:// URI.
        checkpoint: its last checkpoint, likewise.
        metrics: the last report; see `raydis.train.report.metrics_of`.
    """

    name: str
    folder: str
    checkpoint: str
    metrics: dict[str, Any]

    @property
    def scores(self) -> dict[str, Any] | None:
        """`Scores.to_dict()` of the finished model; None where the run does not evaluate itself."""
        return json.loads(self.metrics["scores"]) if self.metrics.get("scores") else None


class SendReports(train.UserCallback):
    """Passes rank 0's reports from Ray Train's controller on to a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._queue.put(metrics[0])


def run(
    config: RunConfig,
    *,
    storage: str = "runs",
    name: str | None = None,
    resume: bool = True,
    on_report: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train one configuration under Ray Train, on this machine or on the cluster it finds itself on.

    Args:
        storage: folder or s3://bucket/prefix; the run lies in `train/NAME` below it.
        name: default: data set and a hash of the configuration, so that the same call goes on where it stopped.
        resume: False refuses a run that exists.
        on_report: called with each report's metrics while the run goes on.

    Raises:
        ConfigError: another configuration has this name, or `resume` is False and the run exists.
        RegistryError: a first stage's `name@alias` that does not exist.
        ResourceError: the cluster cannot hold the run.
        RaydisError: what a worker raised.
    """
    for warning in budget_warnings(config):  # a worker says so as well, but into a file of Ray's
        log.warning(warning)
    config = locate_first_stage(config, storage)
    with ray_cluster():
        nodes = cluster_nodes()
        config = config.model_copy(update={"compute": choose_device(config.compute, nodes)})
        max_parallel_runs(config.compute, nodes)
        with _forward_reports(on_report) as callbacks:
            return fit_with_ray(config, name=name, storage=storage, resume=resume, callbacks=callbacks)


def fit_with_ray(
    config: RunConfig,
    *,
    name: str | None = None,
    storage: str,
    resume: bool = True,
    parent: dict[str, str] | None = None,
    callbacks: Sequence[train.UserCallback] = (),
) -> TrainResult:
    """Train on the connected cluster with the workers that `config.compute` allows; arguments and errors as in `run`.

    A worker, node or controller that dies leads to a restart from the last checkpoint, MAX_RESTARTS times. Each start
    takes as many workers as the cluster then has places for. Ray's own counts of failures are switched off: they do not
    know a controller's death, and would repeat our errors. So is its own elasticity: it knows neither which numbers
    share a batch nor that a GPU's fractions lie on one GPU, and to grow it gives up what came after a checkpoint.
    """
    set_environment()
    store, name = open_store(storage), name or default_name(config)
    _claim(store, name, config, resume=resume)
    check_storage(store, f"train/{name}/{RUN_FILE}")
    restarts, failed_starts = 0, 0
    while True:
        num_workers = choose_num_workers(config.compute, config.train.batch_size, cluster_nodes())
        if num_workers < config.compute.num_workers:
            log.warning(
                "run %s: no place for all of its %d workers, it goes on with %d",
                name,
                config.compute.num_workers,
                num_workers,
            )
        trainer = _trainer(config, num_workers, name=name, store=store, parent=parent, callbacks=callbacks)
        try:
            result = trainer.fit()
        except (TrainingFailedError, RayActorError) as error:
            if (ours := _raydis_error(error)) is not None:
                raise ours from None
            if isinstance(error, train.ControllerError):
                failed_starts += 1
            else:
                restarts += 1
            if restarts > MAX_RESTARTS or failed_starts > MAX_FAILED_STARTS:
                raise FitError(
                    f"run {name} failed {restarts + failed_starts} times, last with {_last_line(error)}. The same "
                    f"command goes on from its last checkpoint in {store.uri}/train/{name}"
                ) from error
            log.warning("run %s starts again: %s", name, _last_line(error))
            continue
        except SystemExit as stop:  # Ray's answer to Ctrl-C ends the process as if all were well
            raise KeyboardInterrupt from stop
        assert result.checkpoint is not None  # a session's last report brings one
        scheme = "s3://" if store.uri.startswith("s3://") else ""
        return TrainResult(
            name=name,
            folder=f"{store.uri}/train/{name}",
            checkpoint=scheme + result.checkpoint.path,
            metrics=result.metrics or {},
        )


def _trainer(
    config: RunConfig,
    num_workers: int,
    *,
    name: str,
    store: Store,
    parent: dict[str, str] | None,
    callbacks: Sequence[train.UserCallback],
) -> TorchTrainer:
    gpus = gpus_per_worker(config.compute)
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "parent": parent},
        # Two ranks on one GPU are an error in NCCL.
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=gpus > 0,
            resources_per_worker=worker_resources(config.compute),
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=f"{store.uri}/train",
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )


def default_name(config: RunConfig) -> str:
    """Data set and a hash of all that decides the result: two configurations never share a run by accident."""
    text = json.dumps(_identity(config), sort_keys=True)
    return f"{config.data.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _identity(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"compute"})


def _claim(store: Store, name: str, config: RunConfig, *, resume: bool) -> None:
    """Note a run's configuration in its folder, or compare it with the one that is there."""
    key, text = f"train/{name}/{RUN_FILE}", json.dumps(_identity(config), indent=2).encode()
    try:
        store.write(key, text, if_absent=True)
    except StoreConflict as error:
        if not resume:
            raise ConfigError(f"run {name} exists in {store.uri}/train: resume it, or choose another name") from error
        if json.loads(store.read(key)) != _identity(config):
            raise ConfigError(
                f"run {name} in {store.uri}/train was started with another configuration (its {RUN_FILE}): "
                "choose another name"
            ) from error


@contextlib.contextmanager
def _forward_reports(on_report: Callable[[dict[str, Any]], None] | None) -> Iterator[list[train.UserCallback]]:
    """Callbacks for Ray Train that make `on_report` hear every report, in this process."""
    if on_report is None:
        yield []
        return
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # it outlives other nodes
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def forward() -> None:
        while (metrics := queue.get()) is not None:
            on_report(metrics)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield [SendReports(queue)]
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()


def _raydis_error(error: BaseException) -> RaydisError | None:
    """The error that made a worker fail, if a restart would meet it again: one of ours, or a disk that is full."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})  # by rank
    return next((final for _, cause in sorted(failures.items()) if (final := final_error(cause))), None)


def _last_line(error: BaseException) -> str:
    return explain(error).line
