"""Where results go, and a folder that not every node sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from raydis.cluster.storage import check_storage, lasting_storage
from raydis.errors import ResourceError
from raydis.store import LocalStore


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/home/someone"})


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_one_node_always_sees_its_own_folder(tmp_path: Path) -> None:
    check_storage(LocalStore(tmp_path), "absent")


def test_a_folder_that_another_node_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = (True, True, False)
    nodes = [{"Alive": on, "NodeID": str(i), "NodeManagerAddress": f"10.0.0.{i}"} for i, on in enumerate(alive)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("raydis.cluster.storage._sees", lambda node, path: node == "0")
    with pytest.raises(ResourceError, match=r"is a folder that node 10\.0\.0\.1 does not see: use --storage s3://"):
        check_storage(LocalStore(tmp_path), "spec.json")


@pytest.mark.usefixtures("clean_environment")
def test_a_jobs_relative_storage_lies_below_home_because_its_folder_is_deleted() -> None:
    assert lasting_storage("runs") == "runs"
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    assert lasting_storage("runs") == str(Path.home() / "runs")
    assert lasting_storage("/data/runs") == "/data/runs"
    assert lasting_storage("s3://bucket/runs") == "s3://bucket/runs"
