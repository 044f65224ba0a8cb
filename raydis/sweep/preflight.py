"""What must hold before a sweep claims its name: first stages, room in the cluster, data."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import ray

from raydis.cluster.connect import fetch_result
from raydis.cluster.resources import Node, free_nodes, max_parallel_runs
from raydis.config import DataConfig
from raydis.errors import ConfigError, ResourceError
from raydis.registry import names_version
from raydis.sweep.spec import SweepSpec

log = logging.getLogger(__name__)


def check_first_stages(spec: SweepSpec) -> None:
    """Only the base run's first stage may be a name of the registry: it is looked up once, for all trials alike."""
    fixed = [control.set for control in spec.controls]
    chosen = [{key: value} for key, domain in spec.search.items() for value in domain.ends()]
    for key, value in (item for settings in [*fixed, *chosen] for item in settings.items()):
        checkpoint = value.get("checkpoint") if isinstance(value, dict) else value
        if key in ("first_stage", "first_stage.checkpoint") and names_version(str(checkpoint)):
            raise ConfigError(f"{key} of a control or choice names {checkpoint}: give the checkpoint's folder or URI")


def parallel_trials(spec: SweepSpec, nodes: Sequence[Node], *, grows: bool) -> int:
    """Return how many trials a cluster may be given at once.

    Trials of one worker wait in Tune's queue, so that all places count, whoever has them now. Workers of one run start
    together or not at all: runs of several get the places that are free. A cluster with an autoscaler has its nodes yet
    to come, and it is the spec that says how many trials ask for them.

    Raises:
        ResourceError: not even one, in a cluster that does not grow.
    """
    if grows:
        log.warning("the cluster grows: trials wait for its nodes; max_concurrent says how many may ask at once")
        return spec.total_trials
    places = max_parallel_runs(spec.run.compute, nodes)
    if spec.run.compute.num_workers == 1:
        return places
    with contextlib.suppress(ResourceError):  # full at this moment
        return min(places, max_parallel_runs(spec.run.compute, free_nodes()))
    return 1


def check_data(spec: SweepSpec) -> None:
    """Open the data set on the cluster, once, before any trial does. Raises DataError."""
    fetch_result(ray.remote(_open_data).remote(spec.run.data))


def _open_data(config: DataConfig) -> int:
    from raydis.data import open_dataset

    return len(open_dataset(config))
