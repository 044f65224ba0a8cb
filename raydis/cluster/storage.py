"""Choose the storage of a run's results, and check that every node of the cluster can see it."""

from __future__ import annotations

import os
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydis.errors import ResourceError
from raydis.store import Location, Store


def lasting_storage(storage: str) -> str:
    """Return the storage with relative folders of a Ray job moved below home; Ray deletes a job's working directory."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return str(Location.parse(storage, relative_to=Path.home())) if in_job else storage


def check_storage(store: Store, key: str) -> None:
    """Check that every node sees a file that was just written, as nodes often do not share a local folder.

    Raises:
        ResourceError: a node does not see the file.
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
