from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.data.pixels import normalise
from raydis.data.smooth import draw_arcs, draw_blobs, render_blobs
from raydis.engine.fit import fit
from raydis.engine.state import Training
from raydis.errors import FitError
from raydis.methods.contract import Batch
from raydis.methods.hlle_ica import HlleIca
from raydis.metrics.mcc import mcc

SIZE = 32


def run(num_units: int = 2, **options: int) -> RunConfig:
    method = {"kind": "hlle_ica", "num_units": num_units, "hidden_dim": 32, **options}
    return RunConfig.model_validate({"data": {"name": "blobs", "image_size": SIZE}, "method": method})


def built(num_units: int = 2, **options: int) -> HlleIca:
    torch.manual_seed(0)
    method = build_method(run(num_units, **options), 1)
    assert isinstance(method, HlleIca)
    return method


def shown(pixels: np.ndarray) -> Tensor:
    """Grey levels (B, H, W) as images."""
    return normalise(torch.from_numpy(np.rint(pixels).astype(np.uint8)[..., None]))


def start(method: HlleIca, images: Tensor, seed: int = 0) -> HlleIca:
    method.start(images.split(300), torch.Generator().manual_seed(seed))
    return method


def score(units: Tensor, factors: np.ndarray) -> float:
    found = mcc(units.numpy(), factors).score
    assert found is not None
    return found


@pytest.mark.parametrize(("draw", "num_factors", "count"), [(draw_arcs, 2, 1000), (draw_blobs, 3, 2000)])
def test_landmarks_and_images_between_them_have_their_factors_as_units(
    draw: object, num_factors: int, count: int
) -> None:
    assert callable(draw)
    factors = np.random.default_rng(0).random((count + 300, num_factors))
    images = shown(draw(factors, SIZE))
    method = start(built(num_factors, num_neighbors=20 if num_factors == 2 else 26), images[:count])
    assert int(method.num_landmarks) == count
    assert score(method.spectral_units(images[:count]), factors[:count]) >= 0.99
    assert score(method.spectral_units(images[count:]), factors[count:]) >= 0.99
    targets = method.targets[:count]
    torch.testing.assert_close(targets.mean(0), torch.zeros(num_factors), rtol=0, atol=1e-4)
    torch.testing.assert_close(targets.T.cov(correction=0), torch.eye(num_factors), rtol=0, atol=1e-3)


def test_distillation_teaches_an_encoder_the_factors(tmp_path: Path) -> None:
    """300 steps on a grid of 1,728 images, all of them landmarks."""
    levels = {"left_x": 12, "left_y": 12, "right_y": 12}
    train = {"num_images": 9_600, "batch_size": 32, "learning_rate": 2e-3, "ema_decay": 0.98, "report_images": 4_800}
    config = run(3, fit_images=1_728).model_dump() | {"train": train}
    dataset = render_blobs(levels, 16, cache_dir=tmp_path)
    config["data"] |= {"image_size": 16, "levels": levels}
    training = Training(RunConfig.model_validate(config), dataset, device=torch.device("cpu"))
    reports = list(fit(training))
    method = training.average
    assert isinstance(method, HlleIca)
    assert reports[-1].losses["distillation"] < 0.5 * reports[0].losses["distillation"]
    images, factors = training.loader.gather(np.arange(1_728)), dataset.factors(np.arange(1_728))
    assert score(method.spectral_units(images), factors) >= 0.99
    assert score(method.units(images), factors) >= 0.95
    found = method.diagnose(images.split(500), None, [])
    assert found is not None
    assert found.details["num_landmarks"] == 1_728
    assert found.details["gap"] > 2
    assert "has no gap" not in found.note


def test_the_encoder_learns_from_the_landmarks_alone() -> None:
    """The decoder reads the encoder's output as a constant."""
    images = shown(draw_arcs(np.random.default_rng(0).random((300, 2)), SIZE))
    method = start(built(num_neighbors=20), images)
    losses = method(Batch(images[:8], {}), "distil")
    losses["reconstruction"].backward()
    assert all(weight.grad is None for weight in method.encoder.parameters())
    assert all(weight.grad is not None for weight in method.decoder.parameters())


def test_two_seeds_find_the_same_units() -> None:
    images = shown(draw_arcs(np.random.default_rng(0).random((800, 2)), SIZE))
    first, other = (start(built(num_neighbors=20), images, seed).spectral_units(images) for seed in (0, 1))
    torch.testing.assert_close(first, other, rtol=0, atol=5e-3)


def test_equal_images_count_once() -> None:
    images = shown(draw_arcs(np.random.default_rng(0).random((500, 2)), SIZE))
    method = start(built(num_neighbors=20), torch.cat([images, images[:100]]))
    assert int(method.num_landmarks) == 500


def test_data_outside_of_the_theory_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """A factor that turns a full circle leaves no gap in the spectrum; Gaussian factors leave no axes."""
    images = shown(draw_arcs(np.random.default_rng(0).random((800, 2)) * [4 / 3, 1.0], SIZE))
    with caplog.at_level(logging.WARNING):
        method = start(built(num_neighbors=20), images)
    assert "The spectrum has no gap after the coordinates" in caplog.text
    found = method.diagnose([images], None, [])
    assert found is not None
    assert "The spectrum has no gap after the coordinates" in found.note
    caplog.clear()
    factors = np.clip(np.random.default_rng(0).normal(0.5, 0.12, (1500, 2)), 0.0, 1.0)
    with caplog.at_level(logging.WARNING):
        start(built(num_neighbors=20), shown(draw_arcs(factors, SIZE)))
    assert "2 of 2 units cannot be told from Gaussians" in caplog.text
    assert "no gap" not in caplog.text


def test_fits_that_cannot_work_are_refused_with_what_to_do() -> None:
    images = shown(draw_arcs(np.random.default_rng(0).random((300, 2)), SIZE))
    with pytest.raises(FitError, match=r"15 different images are too few for 20 neighbours of each: give more images"):
        start(built(num_neighbors=20), torch.cat([images[:15]] * 3))
    with pytest.raises(FitError, match=r"2 different images cannot have num_units=2 factors: lower"):
        start(built(num_neighbors=20), images[:2])
    apart = torch.cat([images[:150] / 4 - 0.7, images[150:] / 4 + 0.7])  # dark and bright
    with pytest.raises(FitError, match=r"has 2 components and leaves 150 images in one piece: raise"):
        start(built(num_neighbors=20), apart)


@pytest.mark.parametrize("more", [1, 2, 5])
def test_barely_more_landmarks_than_neighbors_have_units_and_give_them_to_other_images(more: int) -> None:
    images = shown(draw_arcs(np.random.default_rng(0).random((60, 2)), SIZE))
    method = start(built(num_neighbors=20, fit_images=40), images[: 20 + more])
    count = int(method.num_landmarks)
    assert 20 < count <= 20 + more
    targets = method.targets[:count].double()
    torch.testing.assert_close(targets.T.cov(correction=0), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-3)
    assert method.spectral_units(images).isfinite().all()


def test_landmarks_are_no_more_than_the_budget_has() -> None:
    tree = run().model_dump() | {"train": {"num_images": 600, "batch_size": 8}}
    assert build_method(RunConfig.model_validate(tree), 1).start_images == 600
