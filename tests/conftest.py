"""Fixtures shared by all tests.

A test process computes on one thread, as a raydis worker with one CPU does; RAYDIS_TEST_THREADS=2 runs the same tests
on two, and none of them may depend on it.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydis.build import build_method
from raydis.checkpoint.manifest import Manifest
from raydis.checkpoint.verify import hash_file
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.methods.dyga_sd import DygaSd

NUM_THREADS = int(os.environ.get("RAYDIS_TEST_THREADS", "1"))
CHECKOUT = Path(__file__).resolve().parents[1]
NUM_CPUS = 4  # of the Ray cluster; logical: waiting processes may outnumber the cores
WORKERS_TIMEOUT_S = 240  # for a machine that is busy with other things
Tensors = dict[str, Tensor]


def pytest_configure() -> None:
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def no_ray_by_accident(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Ray without saying so: some of Ray's functions start a cluster when they are called."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and not request.node.get_closest_marker("ray") and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this test started Ray: replace the function that did, or mark the test `ray`")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real reference files (golden images, Sprites, CRDs), which are not ours to ship.

    RAYDIS_SHARED_DATA names it, and must then be right; else it is looked for beside the checkout, and without it the
    tests that compare with real files say so and are skipped.
    """
    named = os.environ.get("RAYDIS_SHARED_DATA")
    folder = Path(named or Path(__file__).resolve().parents[2] / "shared" / "data")
    if named and not folder.is_dir():
        pytest.fail(f"RAYDIS_SHARED_DATA={named} is no folder: correct it, or unset it to skip these tests")
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}: set RAYDIS_SHARED_DATA to the folder that holds sprites/")
    return folder


def work(function: Callable[[int], Tensors], rank: int, meeting_place: str) -> Tensors:
    """A function's tensors, of one of two workers of a gloo group."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=WORKERS_TIMEOUT_S),
    )
    try:
        return function(rank)
    finally:
        torch.distributed.destroy_process_group()


def work_as_the_second(file: str, name: str, meeting_place: str, output: str) -> None:
    torch.set_num_threads(NUM_THREADS)
    save_file(work(runpy.run_path(file)[name], 1, meeting_place), output)


@pytest.fixture(scope="session")
def run_in_two_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Tensors, Tensors]]:
    """Calls a function of a test file with its rank in two processes, this one being the first: what both return."""

    def run(file: str, name: str) -> tuple[Tensors, Tensors]:
        folder = tmp_path_factory.mktemp("workers")
        meeting_place, output = str(folder / "meeting"), str(folder / "second.safetensors")
        arguments = (file, name, meeting_place, output)
        script = f"import runpy; runpy.run_path({__file__!r})['work_as_the_second'](*{arguments!r})"
        second = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[1])
        try:
            first = work(runpy.run_path(file)[name], 0, meeting_place)
            assert second.wait(timeout=WORKERS_TIMEOUT_S) == 0
        finally:
            second.kill()
            second.wait()
        return first, load_file(output)

    return run


MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`make_checkpoint(name, scores, weights=b"...")` writes a resumable checkpoint folder and returns it."""

    def make(name: str = "checkpoint", scores: dict[str, Any] | None = None, weights: bytes = b"weights") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "weights.safetensors").write_bytes(weights)
        (folder / "metrics.json").write_text(json.dumps({"loss": 0.1, "scores": scores}))
        (folder / "training.safetensors").write_bytes(b"moments")
        (folder / "training.json").write_text("{}")
        manifest = Manifest(
            files={path.name: hash_file(path).entry for path in folder.iterdir()},
            images_seen=10,
            data_name="shapes3d_procedural",
            data_fingerprint="abc",
            seed=0,
            packages={},
            code_revision=None,
            created=datetime(2025, 1, 1, tzinfo=UTC),
            parent=None,
        )
        (folder / "manifest.json").write_bytes(manifest.to_json())
        return folder

    return make


class Unlabelled(ArrayDataset):
    """Images whose labels may not be touched."""

    def factors(self, indices: np.ndarray) -> np.ndarray:
        raise AssertionError("fitting looked at the labels")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    """The tiny preset with some sections overridden."""
    return lambda **over: RunConfig.model_validate(expand({"preset": "tiny", **over}))


@pytest.fixture(scope="session")
def dataset(tiny: Callable[..., RunConfig]) -> FactorDataset:
    """The tiny preset's 324 images."""
    return open_dataset(tiny().data)


@pytest.fixture(scope="session")
def unlabelled(dataset: ArrayDataset) -> Unlabelled:
    return Unlabelled(dataset.name, dataset.array, dataset.space, fingerprint=dataset.fingerprint)


@pytest.fixture(scope="session")
def checkpoint(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint that answers to every input: an untrained U-Net ends in zeros and would ignore its tokens."""
    config = tiny()
    torch.manual_seed(0)
    method = build_method(config, 3).eval()
    for weight in method.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    assert isinstance(method, DygaSd)
    images = torch.from_numpy(dataset.images(np.arange(len(dataset)))).permute(0, 3, 1, 2) / 127.5 - 1
    method.first_stage.fit(images)
    method.calibrate([images])
    settings = {"num_gaussians": 2, "num_splits": 1, "split_spread": 0.5, "min_count": 10.0, "em_steps": 5}
    tokens = method.encoder.tokens(method.units(images)).detach()
    method.anchors.fit(tokens, **settings, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint(
        folder,
        config=config,
        weights=method.state_dict(),
        metrics={"loss": 0.5, "factor_names": list(dataset.space.names), "scores": None},
        training=None,
        data_name=dataset.name,
        data_fingerprint=dataset.fingerprint,
        images_seen=512,
    )
    return folder


@pytest.fixture(scope="session")
def editor(checkpoint: Path) -> Editor:
    return Editor.open(checkpoint)


@pytest.fixture(scope="session")
def finished(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory
) -> Editor:
    """A tiny run as its session leaves it, with fitted anchors, scores and a learning curve."""
    config = tiny(train={"num_images": 192}, evaluation={"rungs": [64]})
    training = Training(config, dataset, device=torch.device("cpu"))
    *_, last = run_session(training, tmp_path_factory.mktemp("finished"))
    assert last.checkpoint is not None
    return Editor.open(last.checkpoint)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Ray on this machine; gives a text that stands in the environment of each of its processes, and of no other.

    Its sockets need a short path, and no address of the user's may lead elsewhere. Its workers compute in float64.
    """
    import ray

    from raydis.cluster.connect import set_environment

    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAYDIS_TEST_MARK", folder)
        patch.setenv("RAY_OVERRIDE_RESOURCES", f'{{"CPU": {NUM_CPUS}}}')
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        set_environment()
        assert not ray.is_initialized()
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": "tests.double.compute_in_double"},
        )
        yield folder
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
