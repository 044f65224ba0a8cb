"""A run that borrows a pre-trained model: what it takes over, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.data import FactorDataset, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.fit import fit
from raydis.engine.session import Report, run_session
from raydis.engine.state import Training
from raydis.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
Tiny = Callable[..., RunConfig]
UNET = {"model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [4], "num_heads": 2}
ENCODER = {"model_dim": 8, "norm": "group"}
VQ = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "latent_dim": 3, "num_embeddings": 32}
PCA = {"kind": "patch_pca"}
FROM_PIXELS = {"stage": {"kind": "pixel"}, "method": {"pretrained": {"unet": UNET | {"attention_sizes": [8]}}}}
SHORT = {"num_images": 160, "report_images": 96, "checkpoint_images": 96, "batch_size": 32}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(config: RunConfig, dataset: FactorDataset, folder: Path) -> list[Report]:
    folder.mkdir(exist_ok=True)
    return list(run_session(Training(config, dataset, device=CPU), folder))


def folder_of(report: Report) -> Path:
    assert report.checkpoint is not None
    return report.checkpoint


def lending(tiny: Tiny, stage: dict[str, Any], **over: Any) -> RunConfig:
    """A run that trains the diffusion model."""
    method = {"kind": "unconditional_diffusion", "unet": UNET}
    sections = {"first_stage": stage, "method": method, "train": SHORT, "evaluation": {"protocol": "none"}}
    return tiny(**sections | over)


def borrowing(tiny: Tiny, checkpoint: Path | None, stage: dict[str, Any] = PCA, **over: Any) -> RunConfig:
    """A run that is built on it."""
    pretrained = {"unet": UNET, "checkpoint": None if checkpoint is None else str(checkpoint)}
    method = {"kind": "disdiff", "num_units": 4, "unit_dim": 3, "encoder": ENCODER, "concept_dim": 8}
    method |= {"pretrained": pretrained} | over.pop("method", {})
    sections = {"first_stage": stage, "method": method, "train": SHORT, "evaluation": {"protocol": "none"}}
    return tiny(**sections | over)


@pytest.fixture(scope="module")
def stages(tiny: Tiny, dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two learned first stages with equal settings and different weights."""
    found = []
    for seed in (0, 1):
        config = tiny(
            first_stage={"kind": "pixel"},
            method={"kind": "vq", **VQ},
            train=SHORT,
            evaluation={"protocol": "none"},
            seed=seed,
        )
        checkpoint = folder_of(run(config, dataset, tmp_path_factory.mktemp("stage"))[-1])
        found.append({"kind": "vq", "checkpoint": str(checkpoint), **VQ})
    return found


@pytest.fixture(scope="module")
def lent(
    tiny: Tiny, dataset: FactorDataset, stages: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The checkpoints of two diffusion models, by the kind of their first stage."""
    return {
        stage["kind"]: folder_of(run(lending(tiny, stage), dataset, tmp_path_factory.mktemp("lent"))[-1])
        for stage in (PCA, stages[0])
    }


@pytest.mark.parametrize("kind", ["patch_pca", "vq"])
def test_a_run_takes_the_model_with_its_first_stage_and_scale_and_leaves_both_unchanged(
    tiny: Tiny, dataset: FactorDataset, lent: dict[str, Path], stages: list[dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    config = borrowing(tiny, lent[kind], stages[0] if kind == "vq" else PCA)
    half, *_, whole = run(config, dataset, tmp_path / "runs")
    source = open_checkpoint(lent[kind]).weights()
    kept, tensors = open_checkpoint(folder_of(whole)).weights(), open_checkpoint(folder_of(whole)).training().tensors
    for name, tensor in source.items():
        assert torch.equal(kept[f"diffusion.{name}"], tensor), name
        assert torch.equal(tensors[f"method.diffusion.{name}"], tensor), name
    assert not torch.equal(
        kept["encoder.head.weight"], open_checkpoint(folder_of(half)).weights()["encoder.head.weight"]
    )


def test_a_run_needs_what_it_borrows_only_once(
    tiny: Tiny, dataset: FactorDataset, lent: dict[str, Path], stages: list[dict[str, Any]], tmp_path: Path
) -> None:
    """It is resumed to the bit, and served, from its own checkpoints alone."""
    moved, stage = tmp_path / "model", tmp_path / "stage"
    moved.symlink_to(lent["vq"])
    stage.symlink_to(stages[0]["checkpoint"])
    config = borrowing(tiny, moved, stages[0] | {"checkpoint": str(stage)})
    half, *_, whole = run(config, dataset, tmp_path / "runs")
    moved.unlink()
    stage.unlink()

    training = Training(config, dataset, device=CPU)
    training.resume(open_checkpoint(folder_of(half)))
    list(run_session(training, tmp_path))
    expected = open_checkpoint(folder_of(whole)).training().tensors
    assert [name for name, found in training.state().tensors.items() if not torch.equal(found, expected[name])] == []

    editor, pictures = Editor.open(folder_of(whole)), dataset.images(np.arange(3))
    assert editor.edit(pictures, steps=2).shape == pictures.shape


def test_the_engine_finds_a_model_that_is_not_named_or_not_there(tiny: Tiny, dataset: FactorDataset) -> None:
    with pytest.raises(
        ConfigError, match=r"kind=disdiff needs method\.pretrained\.checkpoint, which is not set\. Train"
    ):
        next(fit(Training(borrowing(tiny, None), dataset, device=CPU)))
    with pytest.raises(
        CheckpointError, match=r"method\.pretrained\.checkpoint=/no/folder: .*Train a model with method"
    ):
        next(fit(Training(borrowing(tiny, Path("/no/folder")), dataset, device=CPU)))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"method": {"pretrained": {"unet": UNET | {"model_dim": 16}}}},
            r"has unet\.model_dim=8: set method\.pretrained\.unet\.model_dim=8 instead of 16",
        ),
        (
            {"method": {"pretrained": {"unet": UNET, "diffusion": {"schedule": "cosine"}}}},
            r"has diffusion\.schedule=ldm_linear: set method\.pretrained\.diffusion\.schedule=ldm_linear instead",
        ),
        (FROM_PIXELS, r"was trained with first_stage\.kind=patch_pca: set it instead of pixel"),
        ({"stage": PCA | {"latent_dim": 5}}, r"has latent_dim=6: set first_stage\.latent_dim=6 instead of 5"),
        ({"stage": PCA | {"whitening": 0.0}}, r"has whitening=1\.0: set first_stage\.whitening=1\.0 instead of 0\.0"),
    ],
)
def test_a_model_with_other_settings_is_refused(
    tiny: Tiny, dataset: FactorDataset, lent: dict[str, Path], over: dict[str, Any], message: str
) -> None:
    if "pretrained" in over.get("method", {}):
        pretrained = over["method"]["pretrained"] | {"checkpoint": str(lent["patch_pca"])}
        over = over | {"method": {"pretrained": pretrained}}
    training = Training(borrowing(tiny, lent["patch_pca"], **over), dataset, device=CPU)
    with pytest.raises(ConfigError, match=rf"method\.pretrained\.checkpoint=.*{message}"):
        next(fit(training))


def test_a_checkpoint_of_another_method_is_refused(
    tiny: Tiny, dataset: FactorDataset, checkpoint: Path, stages: list[dict[str, Any]]
) -> None:
    for found, kind in ((checkpoint, "dyga_sd"), (Path(stages[0]["checkpoint"]), "vq")):
        with pytest.raises(
            ConfigError, match=rf"as method\.kind={kind}, but method\.kind=disdiff is built on .*name another"
        ):
            next(fit(Training(borrowing(tiny, found), dataset, device=CPU)))


def test_a_model_from_images_of_another_shape_is_refused(
    tiny: Tiny, dataset: FactorDataset, lent: dict[str, Path]
) -> None:
    larger = borrowing(tiny, lent["patch_pca"], data={"image_size": 32})
    with pytest.raises(ConfigError, match=r"was trained on images of 16 px, but data\.image_size is 32: train such a"):
        next(fit(Training(larger, open_dataset(larger.data), device=CPU)))
    grey = ArrayDataset("grey", dataset.images(np.arange(324))[..., :1], None, fingerprint="grey")
    with pytest.raises(ConfigError, match=r"does not fit the images of data\.name=shapes3d_procedural .*size mismatch"):
        next(fit(Training(borrowing(tiny, lent["patch_pca"]), grey, device=CPU)))


def test_a_model_behind_another_first_stage_is_refused(
    tiny: Tiny, dataset: FactorDataset, lent: dict[str, Path], stages: list[dict[str, Any]]
) -> None:
    training = Training(borrowing(tiny, lent["vq"], stages[1]), dataset, device=CPU)
    with pytest.raises(
        ConfigError, match=r"behind another first stage than first_stage\.checkpoint=.*name the one that"
    ):
        next(fit(training))


def test_a_model_may_have_seen_other_images_of_the_same_shape(
    tiny: Tiny, dataset: ArrayDataset, lent: dict[str, Path]
) -> None:
    (*_, last) = fit(Training(borrowing(tiny, lent["patch_pca"]), dataset.subgrid({"floor_hue": 2}), device=CPU))
    assert last.loss is not None
    assert np.isfinite(last.loss)
