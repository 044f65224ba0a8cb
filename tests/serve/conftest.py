"""A tiny model that has learnt nothing, which is enough to serve: its checkpoint, its registry, its service."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydis.build import build_method
from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.editor.editor import Editor
from raydis.registry import ModelRef, Registry
from raydis.serve.model import ServedModel
from raydis.store import open_store

FileOf = Callable[..., bytes]
SCORES = {  # as raydis stored them before the table of metrics
    "protocol": "search",
    "sizes": {"mig_num_bins": 20},
    "estimator": "tree",
    "seed": 0,
    "num_images": 324,
    "data_fingerprint": "f" * 64,
    "status": "valid",
    "factor_vae": 0.25,
}


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """Writes the checkpoint of an untrained `tiny` model whose every weight differs from zero."""

    def write(
        folder: Path, *, seed: int = 0, mode: str = "constant", spoil: Callable[[dict], None] | None = None
    ) -> Path:
        config = RunConfig.model_validate(expand({"preset": "tiny", "method": {"anchors": {"mode": mode}}}))
        torch.manual_seed(seed)
        method = build_method(config, 3)
        for parameter in method.parameters():  # an untrained U-Net ends in zeros, and would ignore its input
            torch.nn.init.normal_(parameter, std=0.2)
        images = torch.rand(200, 3, 16, 16) * 2 - 1
        units = method.eval().units(images)
        method.first_stage.fit(images)
        method.calibrate([images])
        method.anchors.fit(
            method.encoder.tokens(units).detach(),
            num_gaussians=2,
            num_splits=1,
            split_spread=0.5,
            min_count=10.0,
            em_steps=5,
            generator=torch.Generator().manual_seed(seed),
        )
        weights = method.state_dict()
        if spoil:
            spoil(weights)
        write_checkpoint(
            folder,
            config=config,
            weights=weights,
            metrics={"loss": 0.5, "scores": SCORES},
            training=None,
            data_name="shapes3d_procedural",
            data_fingerprint="f" * 64,
            images_seen=512,
        )
        return folder

    return write


@pytest.fixture(scope="session")
def checkpoint(write_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def editor(checkpoint: Path) -> Editor:
    return Editor.open(checkpoint)


@pytest.fixture
def served(editor: Editor) -> ServedModel:
    return ServedModel(editor, ModelRef("tiny", 1), encode_batch_size=4, edit_batch_size=4)


@pytest.fixture
def registry(checkpoint: Path, tmp_path: Path) -> Registry:
    """Holds tiny@1, which is also tiny@best."""
    registry = Registry(open_store(str(tmp_path / "runs")))
    registry.set_alias("tiny", "best", registry.register(open_checkpoint(checkpoint), "tiny"))
    return registry


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Nine different images of the model's size, (9, 16, 16, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def file_of() -> FileOf:
    """Makes an image file of (H, W) or (H, W, C) uint8 pixels."""

    def file(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return file
