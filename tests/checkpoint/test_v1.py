"""A checkpoint of format version 1 opens, resumes, is registered and served.

`v1/` was written by commit 4024c33, at 160 of the 320 images of a run on one thread, as trial-0003 of the sweep
quickstart. The run was the preset `tiny` with these settings: anchors.mode=ramp, anchors.max_gaussians=3, num_units=3,
unit_dim=4, encoder.channels=[4,4], encoder.hidden_dims=[16], encoder.token_hidden_dims=[8], unet.model_dim=8,
unet.multipliers=[1], unet.attention_sizes=[] (all of these below `method`), train.num_images=320,
train.report_images=160 and train.checkpoint_images=160.

`v1_resumed.json` is what the same commit makes of it. It resumed `v1/` in float64, with its pixels computed in
float64 as well. The file holds the last loss, and mean and root mean square of each tensor of the weights at 320
images, but not the quantiles, which that commit rounded to float32. In float32 only one processor repeats a run
exactly: on the machine that wrote `v1/`, this code resumed it in float32 and ended with the weights, raw weights and
moments of the old run that was never interrupted, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydis.checkpoint.fetch import fetch_checkpoint
from raydis.checkpoint.manifest import FORMAT_VERSION
from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.data import open_dataset
from raydis.editor.editor import Editor
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import CheckpointError
from raydis.registry import ModelRef, Registry
from raydis.serve.model import Drawing, open_model
from raydis.store import LocalStore
from tests.double import ROUNDING, double_precision

HERE = Path(__file__).parent
V1 = HERE / "v1"


@pytest.fixture
def old() -> Checkpoint:
    return open_checkpoint(V1)


@pytest.fixture
def in_double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(V1, tmp_path / "v1"))


def test_it_opens_in_todays_words(old: Checkpoint) -> None:
    assert old.manifest.format_version == 1
    assert old.manifest.code_revision == "4024c33d3fc1d5e0c246eb943fae68fc3e183b47"
    assert '"family": "dyga_sd"' in (V1 / "config.json").read_text()
    assert old.config.method.kind == "dyga_sd"
    assert old.config.method.model_dump()["anchors"]["mode"] == "ramp"
    assert old.manifest.data_fingerprint == open_dataset(old.config.data).fingerprint


def test_it_resumes_and_ends_as_the_code_that_wrote_it(in_double: None, old: Checkpoint, tmp_path: Path) -> None:
    expected = json.loads((HERE / "v1_resumed.json").read_text())
    training = Training(old.config, open_dataset(old.config.data), device=torch.device("cpu"))
    training.resume(old)
    assert (training.step, training.num_refits) == (5, 1)
    *_, last = run_session(training, tmp_path)
    assert last.checkpoint is not None
    assert (last.progress.images_seen, last.progress.finished) == (320, True)
    assert last.progress.loss == pytest.approx(expected["loss"], abs=ROUNDING)
    ended = open_checkpoint(last.checkpoint)
    assert ended.manifest.format_version == FORMAT_VERSION
    weights = ended.weights()
    assert weights.keys() - {"unit_quantiles"} == expected["weights"].keys()
    for name, numbers in expected["weights"].items():
        found = [weights[name].double().mean().item(), weights[name].double().square().mean().sqrt().item()]
        assert found == pytest.approx(numbers, abs=ROUNDING, rel=ROUNDING), name


def test_it_is_registered_and_served(old: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    registry = Registry(LocalStore(tmp_path / "runs"))
    ref = ModelRef("old", registry.register(old, "old"))
    assert registry.manifest(ref) == old.manifest.without_training()  # byte for byte what it was, version too
    editor, served = Editor.open(old), open_model(registry, ref)
    images = open_dataset(old.config.data).images(np.arange(2))
    units = editor.encode(images).units
    assert units.shape == (2, 3)
    assert editor.edit(images, set={1: 0.5}, steps=2).shape == images.shape
    codes = served.encode(list(images))
    np.testing.assert_allclose(np.stack([row.units for row in codes]), units, atol=1e-5)
    (picture,) = served.draw([Drawing(codes[0].units, codes[0].codes, 0, served.sampling(2, None, keep_details=False))])
    assert picture.shape == images.shape[1:]


def test_it_is_published_in_todays_format(old: Checkpoint, tmp_path: Path) -> None:
    published = old.with_metrics({"loss": 1.0, "scores": None})
    registry = Registry(LocalStore(tmp_path / "runs"))
    fetched = registry.fetch(ModelRef("old", registry.register(published, "old")), tmp_path / "cache")
    assert fetched.manifest.format_version == FORMAT_VERSION
    assert (fetched.config, fetched.metrics) == (old.config, {"loss": 1.0, "scores": None})
    assert json.loads((fetched.folder / "config.json").read_text())["method"]["kind"] == "dyga_sd"
    assert (fetched.folder / "weights.safetensors").read_bytes() == (V1 / "weights.safetensors").read_bytes()


def test_a_damaged_one_is_refused(copy: Path, tmp_path: Path) -> None:
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"family": "dyga_sd"', '"family": "dyga_sx"'))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: expected sha256 \w+ .*Fetch it again or use"):
        fetch_checkpoint(copy, tmp_path / "cache")


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_version_is_refused(copy: Path, version: Any) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(tree | {"format_version": version}))
    with pytest.raises(
        CheckpointError, match=rf"has format version {version}, this raydis reads 1 and 2: open it with"
    ):
        open_checkpoint(copy)


def test_version_2_does_not_guess_what_version_1_meant(copy: Path) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(tree | {"format_version": 2}))
    with pytest.raises(CheckpointError, match=r"config\.json: method\.family"):
        open_checkpoint(copy)
