"""A tiny run's data, and a checkpoint whose weights are drawn at random, for tests that only need a working model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.engine.checkpoint import write_checkpoint
from raydis.engine.editor import Editor
from raydis.methods.dyga_sd import DygaSd


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
