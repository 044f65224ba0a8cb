"""Check a sweep before it starts: the checkpoints that it borrows, the room in the cluster, and its data set."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import ray

from raydis.cluster.connect import fetch_result
from raydis.cluster.resources import Node, free_nodes, max_parallel_runs
from raydis.config import DataConfig
from raydis.config.run import BORROWED
from raydis.errors import ConfigError, ResourceError
from raydis.registry import names_version
from raydis.sweep.spec import SweepSpec

log = logging.getLogger(__name__)


def check_checkpoints(spec: SweepSpec) -> None:
    """Raise ConfigError if a control or choice names a checkpoint to borrow by `name@version` or `name@alias`.

    Only the base run may do this, because the registry is read once for all trials.
    """
    fixed = [control.set for control in spec.controls]
    chosen = [{key: value} for key, domain in spec.search.items() for value in domain.ends()]
    for key, value in (item for settings in [*fixed, *chosen] for item in settings.items()):
        for checkpoint in _below(key, value, BORROWED):
            if names_version(checkpoint):
                raise ConfigError(
                    f"{key} of a control or choice names {checkpoint}: give the checkpoint's folder or URI"
                )


def _below(key: str, value: object, wanted: Sequence[str]) -> Iterator[str]:
    """Yield the texts at the wanted dotted keys within a value at a dotted key."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _below(f"{key}.{name}", below, wanted)
    elif key in wanted and isinstance(value, str):
        yield value


def parallel_trials(spec: SweepSpec, nodes: Sequence[Node], *, grows: bool) -> int:
    """Return how many trials may run on a cluster at once.

    Trials with one worker wait in Tune's queue for resources, so the whole cluster counts, even if other work occupies
    it now. The workers of one run must start together, so for trials with several workers only free resources count. A
    cluster with an autoscaler adds nodes for waiting trials, so all may start, up to the spec's `max_concurrent`.

    Raises:
        ResourceError: a cluster without an autoscaler cannot hold a single trial.
    """
    if grows:
        log.warning("the cluster has an autoscaler: trials wait for new nodes; max_concurrent limits how many at once")
        return spec.total_trials
    places = max_parallel_runs(spec.run.hardware, nodes)
    if spec.run.compute.num_workers == 1:
        return places
    with contextlib.suppress(ResourceError):  # the cluster is full at this moment
        return min(places, max_parallel_runs(spec.run.hardware, free_nodes()))
    return 1


def check_data(spec: SweepSpec) -> None:
    """Open the data set once on the cluster, before the trials do. Raises DataError if that fails."""
    fetch_result(ray.remote(_open_data).remote(spec.run.data))


def _open_data(config: DataConfig) -> int:
    from raydis.data import open_dataset

    return len(open_dataset(config))
