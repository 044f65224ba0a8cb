from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydis.build import build_method
from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.data import FactorDataset, Loader, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.fit import fit
from raydis.engine.latents import open_latents
from raydis.engine.session import Report, run_session
from raydis.engine.state import Training
from raydis.engine.step import next_batch
from raydis.errors import CheckpointError, ConfigError
from raydis.methods.autoencoder import AutoencoderMethod
from raydis.models.autoencoders import Autoencoder, VqAutoencoder

CPU = torch.device("cpu")
Tiny = Callable[..., RunConfig]
SIZES = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "latent_dim": 3}
CODEBOOK = {"vq": {"num_embeddings": 32}, "kl": {}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stage_run(tiny: Tiny, kind: str, **over: Any) -> RunConfig:
    """A run that trains a tiny first stage."""
    sections: dict[str, Any] = {
        "first_stage": {"kind": "pixel"},
        "method": {"kind": kind, **SIZES, **CODEBOOK[kind]},
        "train": {"num_images": 320, "report_images": 160, "checkpoint_images": 160, "learning_rate": 3e-3},
        "evaluation": {"protocol": "none"},
    }
    return tiny(**{**sections, **over})


def run(config: RunConfig, dataset: FactorDataset, folder: Path) -> list[Report]:
    folder.mkdir(exist_ok=True)
    return list(run_session(Training(config, dataset, device=CPU), folder))


@pytest.fixture(scope="module")
def trained(tiny: Tiny, dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """The last report of a tiny first stage of each kind."""
    return {
        kind: run(stage_run(tiny, kind), dataset, tmp_path_factory.mktemp("stages") / kind)[-1] for kind in ("vq", "kl")
    }


def behind(tiny: Tiny, report: Report, kind: str = "vq", stage: dict[str, Any] | None = None, **over: Any) -> RunConfig:
    """A tiny diffusion run behind a first stage."""
    sections = {"kind": kind, "checkpoint": str(report.checkpoint), **SIZES, **CODEBOOK[kind], **(stage or {})}
    return tiny(first_stage=sections, **over)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of images of each pass of the encoder."""
    found: list[int] = []

    def count(self: VqAutoencoder, images: torch.Tensor) -> torch.Tensor:
        found.append(len(images))
        return raw(self, images)

    raw = VqAutoencoder.raw
    monkeypatch.setattr(VqAutoencoder, "raw", count)
    return found


# ---- training a stage


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_first_stage_is_trained_by_the_same_loop_and_reports_its_psnr(
    trained: dict[str, Report], dataset: FactorDataset, kind: str
) -> None:
    report = trained[kind]
    assert report.checkpoint is not None
    checkpoint = open_checkpoint(report.checkpoint)
    metrics = checkpoint.metrics
    assert report.reconstruction is not None
    assert metrics["psnr"] == report.reconstruction.psnr
    method = build_method(checkpoint.config, 3)
    method.load_state_dict(checkpoint.weights())
    assert isinstance(method, AutoencoderMethod)
    images = Loader(dataset, batch_size=1, seed=0).gather(np.arange(len(dataset)))
    errors = (method.reconstruct(images) - images).square().mean((1, 2, 3))
    assert report.reconstruction.psnr == pytest.approx((10 * (4 / errors).log10()).mean().item(), abs=1e-3)
    assert metrics["scores"] is report.scores is None
    assert metrics["factor_names"] == list(dataset.space.names)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_an_interrupted_first_stage_goes_on_as_if_nothing_had_happened(
    tiny: Tiny, dataset: FactorDataset, tmp_path: Path, kind: str
) -> None:
    critic = {"discriminator_weight": 0.1, "discriminator_channels": [8], "discriminator_start_images": 200}
    config = stage_run(tiny, kind, method={"kind": kind, **SIZES, **CODEBOOK[kind], **critic})
    half, _, whole = run(config, dataset, tmp_path / "whole")
    training = Training(config, dataset, device=CPU)
    torch.manual_seed(12345)
    assert half.checkpoint is not None
    assert whole.checkpoint is not None
    training.resume(open_checkpoint(half.checkpoint))
    *_, last = run_session(training, tmp_path)
    assert (last.reconstruction, last.progress.loss) == (whole.reconstruction, whole.progress.loss)
    expected = open_checkpoint(whole.checkpoint).training().tensors
    found = training.state().tensors
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_an_editor_refuses_a_first_stage(trained: dict[str, Report]) -> None:
    assert trained["vq"].checkpoint is not None
    with pytest.raises(CheckpointError, match=r"holds a model without units, for other runs to build on: open"):
        Editor.open(trained["vq"].checkpoint)


# ---- latents


def test_latents_are_computed_once_and_are_those_of_the_encoder_but_for_half_precision(
    dataset: FactorDataset, cache: Path, encoded: list[int]
) -> None:
    torch.manual_seed(0)
    stage = VqAutoencoder(3, num_embeddings=8, **SIZES)
    loader = Loader(dataset, batch_size=32, seed=0)
    latents = open_latents(stage, loader)
    assert sum(encoded) == len(dataset)
    encoded.clear()
    again = open_latents(stage, loader)
    assert not encoded

    some = np.array([300, 4, 4, 17])
    expected = stage.raw(loader.gather(some))
    for found in (latents.gather(some), again.gather(some)):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.half().float()) or torch.allclose(found, expected, rtol=2**-10, atol=1e-6)
    (path,) = cache.glob("*.npy")
    assert path.name.startswith(f"{dataset.name}-{dataset.fingerprint[:16]}-latents-")
    assert np.load(path).dtype == np.float16


def test_other_weights_and_other_images_have_latents_of_their_own_and_the_decoder_does_not_matter(
    dataset: ArrayDataset, cache: Path
) -> None:
    torch.manual_seed(0)
    stage = VqAutoencoder(3, num_embeddings=8, **SIZES)
    open_latents(stage, Loader(dataset, batch_size=32, seed=0))
    with torch.no_grad():
        next(stage.decoder.parameters()).add_(1.0)
    open_latents(stage, Loader(dataset, batch_size=32, seed=1))
    assert len(list(cache.glob("*.npy"))) == 1
    with torch.no_grad():
        stage.to_latent.bias.add_(1.0)
    open_latents(stage, Loader(dataset, batch_size=32, seed=0))
    assert len(list(cache.glob("*.npy"))) == 2
    other = ArrayDataset(dataset.name, dataset.array, dataset.space, fingerprint="other")
    open_latents(stage, Loader(other, batch_size=32, seed=0))
    assert len(list(cache.glob("*.npy"))) == 3


# ---- diffusion behind a stage


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_diffusion_run_takes_its_first_stage_from_the_checkpoint_and_keeps_it_unchanged(
    tiny: Tiny, trained: dict[str, Report], dataset: FactorDataset, kind: str
) -> None:
    report = trained[kind]
    training = Training(behind(tiny, report, kind, train={"num_images": 160}), dataset, device=CPU)
    losses = [progress.loss for progress in fit(training)]
    assert all(loss is not None and 0.0 < loss < 2.0 for loss in losses)
    assert report.checkpoint is not None
    source = open_checkpoint(report.checkpoint).weights()
    for method in (training.method, training.average):
        stage = method.autoencoder
        assert isinstance(stage, Autoencoder)
        for name, tensor in stage.state_dict().items():
            assert name == "scale" or torch.equal(tensor, source[f"network.{name}"]), name
        images = training.loader.gather(np.arange(len(dataset)))
        assert stage.encode(images).std().item() == pytest.approx(1.0, abs=1e-3)


def test_a_step_uses_the_latents_that_are_kept_and_encodes_nothing(
    tiny: Tiny, trained: dict[str, Report], dataset: FactorDataset, encoded: list[int]
) -> None:
    config = behind(tiny, trained["vq"], train={"num_images": 64})
    losses = []
    for expected in (len(dataset), 0):  # the second run finds the first one's
        (progress,) = fit(Training(config, dataset, device=CPU))
        assert sum(encoded) == expected
        encoded.clear()
        losses.append(progress.loss)
    assert losses[0] == losses[1]

    training = Training(config, dataset, device=CPU)
    training.open_borrowed()
    batch = next_batch(training)
    assert batch.latents is not None
    torch.manual_seed(0)
    kept = training.method(batch, "denoise")["loss"]
    torch.manual_seed(0)
    encoded_anew = training.method(batch._replace(latents=None), "denoise")["loss"]
    assert encoded_anew.item() == pytest.approx(kept.item(), rel=1e-3)


def test_a_diffusion_run_needs_its_first_stages_checkpoint_only_once(
    tiny: Tiny, trained: dict[str, Report], dataset: FactorDataset, tmp_path: Path, cache: Path
) -> None:
    """It is served, and resumed to the bit, from its own checkpoints alone."""
    checkpoint = trained["vq"].checkpoint
    assert checkpoint is not None
    moved = tmp_path / "stage"
    moved.symlink_to(checkpoint)
    train = {"num_images": 320, "report_images": 160, "checkpoint_images": 160}
    config = behind(tiny, trained["vq"], stage={"checkpoint": str(moved)}, train=train)
    half, _, whole = run(config, dataset, tmp_path / "runs")
    moved.unlink()

    training = Training(config, dataset, device=CPU)
    assert half.checkpoint is not None
    training.resume(open_checkpoint(half.checkpoint))
    for path in cache.glob("*.npy"):
        path.unlink()
    *_, last = run_session(training, tmp_path)
    assert last.scores == whole.scores
    assert whole.checkpoint is not None
    expected = open_checkpoint(whole.checkpoint).training().tensors
    assert [name for name, found in training.state().tensors.items() if not torch.equal(found, expected[name])] == []

    editor = Editor.open(whole.checkpoint)
    pictures = dataset.images(np.arange(3))
    drawn = editor.edit(pictures, steps=3)
    assert drawn.shape == pictures.shape
    assert np.array_equal(drawn, editor.edit(pictures, steps=3))


@pytest.mark.parametrize(
    ("kind", "stage", "message"),
    [
        ("vq", {"num_embeddings": 64}, r"has num_embeddings=32: set first_stage\.num_embeddings=32 instead of 64"),
        ("vq", {"latent_dim": 4}, r"has latent_dim=3: set first_stage\.latent_dim=3 instead of 4"),
        (
            "vq",
            {"stem_stride": 1, "multipliers": [1, 2, 2]},
            r"has stem_stride=2, multipliers=\[1, 2\]: set "
            r"first_stage\.stem_stride=2 instead of 1, first_stage\.multipliers=\[1, 2\] instead of \[1, 2, 2\]",
        ),
        ("vq", {"multipliers": [2, 2]}, r"has multipliers=\[1, 2\]: set first_stage\.multipliers=\[1, 2\]"),
        ("kl", {}, r"was trained as method\.kind=vq, but first_stage\.kind=kl: set first_stage\.kind=vq"),
    ],
)
def test_another_network_than_the_checkpoints_is_refused(
    tiny: Tiny,
    trained: dict[str, Report],
    dataset: FactorDataset,
    kind: str,
    stage: dict[str, Any],
    message: str,
) -> None:
    training = Training(behind(tiny, trained["vq"], kind, stage), dataset, device=CPU)
    with pytest.raises(ConfigError, match=rf"first_stage\.checkpoint=.*{message}"):
        next(fit(training))


def test_images_of_another_size_or_with_other_channels_are_refused(
    tiny: Tiny, trained: dict[str, Report], dataset: FactorDataset
) -> None:
    larger = behind(
        tiny,
        trained["vq"],
        data={"image_size": 32},
        method={"encoder": {"stem_stride": 8}, "unet": {"attention_sizes": [], "skip_dropout_sizes": []}},
    )
    with pytest.raises(ConfigError, match=r"was trained on images of 16 px, but data\.image_size is 32: train a first"):
        next(fit(Training(larger, open_dataset(larger.data), device=CPU)))
    grey = ArrayDataset("grey", dataset.images(np.arange(40))[..., :1], None, fingerprint="grey")
    config = behind(tiny, trained["vq"])
    with pytest.raises(ConfigError, match=r"does not fit the images of data\.name=shapes3d_procedural .*size mismatch"):
        next(fit(Training(config, grey, device=CPU)))


def test_a_checkpoint_that_is_not_there_or_is_no_first_stage_is_refused(
    tiny: Tiny, trained: dict[str, Report], checkpoint: Path, dataset: FactorDataset
) -> None:
    nothing = behind(tiny, trained["vq"], stage={"checkpoint": "/no/folder"})
    with pytest.raises(
        CheckpointError, match=r"first_stage\.checkpoint=/no/folder: .*Train one with `python -m raydis"
    ):
        next(fit(Training(nothing, dataset, device=CPU)))
    diffusion = behind(tiny, trained["vq"], stage={"checkpoint": str(checkpoint)})
    with pytest.raises(ConfigError, match=r"method\.kind=dyga_sd, but first_stage\.kind=vq: name another"):
        next(fit(Training(diffusion, dataset, device=CPU)))


def test_a_first_stage_may_have_seen_other_images_of_the_same_shape(
    tiny: Tiny, trained: dict[str, Report], dataset: ArrayDataset
) -> None:
    part = dataset.subgrid({"floor_hue": 2})
    (progress,) = fit(Training(behind(tiny, trained["vq"], train={"num_images": 64}), part, device=CPU))
    assert progress.loss is not None
    assert 0.0 < progress.loss < 2.0
