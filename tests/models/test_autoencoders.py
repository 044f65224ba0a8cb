from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from raydis.models.autoencoders import Autoencoder, KlAutoencoder, PatchPCA, Pixel, VqAutoencoder

PATCH = 4


def smooth_images(count: int = 40, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    """Random pictures in [-1, 1] with a falling spectrum and a mean far from zero, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(count, channels, size, size, generator=generator))
    frequency = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()
    images = torch.fft.irfft2(
        spectrum / (0.01 + frequency).sqrt() * torch.tensor([3.0, 2.0, 1.0])[:channels, None, None]
    )
    return (images / images.abs().amax() * 0.7 + 0.3).clamp(-1.0, 1.0)


def patch_rows(images: Tensor) -> np.ndarray:
    """Patches as rows (patches, C * P * P), cut without torch's unfold."""
    count, channels, size, _ = images.shape
    side = size // PATCH
    grid = images.numpy().reshape(count, channels, side, PATCH, side, PATCH)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * PATCH * PATCH).astype(np.float64)


def fitted(latent_dim: int, images: Tensor, whitening: float = 1.0) -> PatchPCA:
    stage = PatchPCA(images.shape[1], PATCH, latent_dim, whitening)
    stage.fit(images)
    return stage


def test_pixels_survive_and_have_unit_deviation_once_fitted() -> None:
    images = smooth_images()
    stage = Pixel(3)
    stage.fit(images)
    assert stage.latent_dim == 3
    assert stage.encode(images).std().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(stage.decode(stage.encode(images)), images)


def test_an_unfitted_pixel_stage_is_the_identity() -> None:
    assert torch.equal(Pixel(3).encode(smooth_images()), smooth_images())


@pytest.mark.parametrize(("latent_dim", "count"), [(1, 40), (6, 300), (20, 40)])  # 300: more than one chunk
def test_components_span_the_subspace_that_scikit_learn_finds(latent_dim: int, count: int) -> None:
    images = smooth_images(count)
    ours = fitted(latent_dim, images).components.flatten(1).numpy()
    theirs = PCA(latent_dim, svd_solver="full").fit(patch_rows(images)).components_
    np.testing.assert_allclose(ours @ ours.T, np.eye(latent_dim), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(ours * theirs, axis=1)), 1.0, atol=1e-4)


@pytest.mark.parametrize("latent_dim", [1, 6, 20])
@pytest.mark.parametrize("whitening", [0.0, 1.0])
def test_what_decoding_loses_is_what_scikit_learn_loses(latent_dim: int, whitening: float) -> None:
    images = smooth_images()
    stage = fitted(latent_dim, images, whitening)
    rows = patch_rows(images)
    theirs = PCA(latent_dim, svd_solver="full").fit(rows)
    lost = (stage.decode(stage.encode(images)) - images).square().mean().item()
    expected = np.square(theirs.inverse_transform(theirs.transform(rows)) - rows).mean()
    assert lost == pytest.approx(expected, rel=1e-4)
    assert lost > 0


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_as_many_components_as_a_patch_has_values_lose_nothing(whitening: float) -> None:
    images = smooth_images()
    stage = fitted(3 * PATCH**2, images, whitening)
    torch.testing.assert_close(stage.decode(stage.encode(images)), images, rtol=0, atol=1e-5)


def test_whitened_latents_are_those_of_scikit_learn_but_for_signs() -> None:
    images = smooth_images()
    latents = fitted(6, images).encode(images).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    theirs = PCA(6, svd_solver="full", whiten=True).fit_transform(patch_rows(images))
    np.testing.assert_allclose(np.abs(latents), np.abs(theirs), rtol=0, atol=0.01)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_of_the_fitting_images_have_unit_mean_square_and_the_asked_for_shares(whitening: float) -> None:
    images = smooth_images()
    latents = fitted(6, images, whitening).encode(images)
    assert latents.shape == (40, 6, 4, 4)
    assert latents.square().mean().item() == pytest.approx(1.0, abs=1e-4)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    variances = PCA(6, svd_solver="full").fit(patch_rows(images)).explained_variance_
    measured = latents.square().mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(measured / measured[0], (variances / variances[0]) ** (1 - whitening), rtol=1e-3)


def test_encoding_a_decoded_latent_returns_it() -> None:
    images = smooth_images()
    stage = fitted(6, images)
    latents = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stage.encode(stage.decode(latents)), latents, rtol=0, atol=1e-4)


def test_a_patch_is_encoded_without_its_neighbours() -> None:
    images = smooth_images()
    stage = fitted(6, images)
    changed = images[:1].clone()
    changed[:, :, 4:8, 8:12] += 0.1
    moved = (stage.encode(changed) != stage.encode(images[:1])).any(1)[0]
    assert moved.nonzero().tolist() == [[1, 2]]


def test_the_largest_entry_of_every_component_is_positive_whatever_the_order_of_the_images() -> None:
    images = smooth_images()
    components = fitted(20, images).components.flatten(1)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(fitted(6, images.flip(0)).encode(images), fitted(6, images).encode(images))


def test_constant_images_are_encoded_to_zero_and_come_back() -> None:
    images = torch.full((4, 3, 8, 8), 0.25)
    stage = fitted(6, images)
    latents = stage.encode(images)
    assert latents.isfinite().all()
    torch.testing.assert_close(stage.decode(latents), images)


def test_directions_that_images_do_not_have_are_not_blown_up() -> None:
    """Patches that differ by brightness alone: all further deviations are rounding errors of a variance of 0."""
    images = smooth_images()[:, :1, ::PATCH, ::PATCH].repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    images = images.repeat(1, 3, 1, 1)
    stage = fitted(6, images)
    assert stage.scale.flatten()[1:].tolist() == pytest.approx([1000 * stage.scale[0].item()] * 5)
    torch.testing.assert_close(stage.decode(stage.encode(images)), images, rtol=0, atol=1e-5)


def test_one_channel_images_are_fitted_too() -> None:
    images = smooth_images(channels=1)
    stage = fitted(16, images)
    torch.testing.assert_close(stage.decode(stage.encode(images)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: Pixel(3), lambda: PatchPCA(3, PATCH, 6)])
def test_the_state_dict_restores_a_fitted_stage(make) -> None:
    images = smooth_images()
    stage, restored = make(), make()
    stage.fit(images)
    restored.load_state_dict(stage.state_dict())
    assert torch.equal(restored.encode(images), stage.encode(images))
    assert not list(stage.parameters())


def test_more_components_than_a_patch_has_values_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim=49 must not exceed the 48 values of a patch"):
        PatchPCA(3, 4, 49)


# ---- learned stages

SIZES = {"latent_dim": 2, "stem_stride": 1, "model_dim": 4, "multipliers": (1, 2, 2), "num_blocks": 1}


def learned(kind: str) -> Autoencoder:
    torch.manual_seed(0)
    return VqAutoencoder(3, num_embeddings=32, **SIZES) if kind == "vq" else KlAutoencoder(3, **SIZES)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_learned_latent_is_deterministic_and_scaled(kind: str) -> None:
    stage, images = learned(kind), smooth_images(8)
    raw = stage.raw(images)
    assert raw.shape == (8, 2, 4, 4)
    assert torch.equal(stage.raw(images), raw)
    stage.fit_scale(raw)
    assert stage.scale.item() == pytest.approx(1.0 / raw.std().item())
    assert stage.encode(images).std().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(stage.decode(stage.encode(images)), stage.decode_raw(raw))
    assert stage.decode_raw(raw).shape == images.shape


def test_a_vector_quantised_stage_quantises_when_it_decodes_and_not_when_it_encodes() -> None:
    stage, images = learned("vq"), smooth_images(8)
    stage.start(images)
    raw = stage.raw(images)
    quantised = stage.codebook.quantise(raw)
    assert not torch.equal(raw, quantised)
    torch.testing.assert_close(stage.decode_raw(raw), stage.decode_raw(quantised))
    reconstruction, loss = stage(images, torch.zeros(8, 2, 4, 4))
    torch.testing.assert_close(reconstruction, stage.decode_raw(raw))
    torch.testing.assert_close(loss, 1.25 * (quantised - raw).square().mean())


def test_a_started_codebook_holds_latents_of_the_images() -> None:
    stage, images = learned("vq"), smooth_images(8)
    stage.start(images)
    assert len(stage.codebook.nearest(stage.raw(images)).unique()) == 32


def test_a_gaussian_stage_draws_around_its_mean_and_is_charged_for_leaving_the_standard_normal() -> None:
    stage, images = learned("kl"), smooth_images(8)
    mean, log_variance = stage.to_latent(stage.encoder(images)).chunk(2, dim=1)
    torch.testing.assert_close(stage.raw(images), mean)
    noise = torch.randn_like(mean)
    reconstruction, loss = stage(images, noise)
    torch.testing.assert_close(reconstruction, stage.decode_raw(mean + noise * (log_variance / 2).exp()))
    here = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(here, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(loss, divergence.sum() / images.numel())


@pytest.mark.parametrize("log_variance", [-200.0, 200.0])
def test_a_gaussian_stage_survives_a_variance_out_of_range(log_variance: float) -> None:
    stage, images = learned("kl"), smooth_images(8)
    with torch.no_grad():
        assert stage.to_latent.bias is not None
        stage.to_latent.bias[2:] = log_variance
    reconstruction, loss = stage(images, torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert reconstruction.isfinite().all()
    edge = min(max(log_variance, -30.0), 20.0)
    per_value = 0.5 * (math.exp(edge) - 1.0 - edge)
    mean = stage.raw(images)
    expected = (0.5 * mean.square().sum() + per_value * mean.numel()) / images.numel()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_state_dict_restores_a_learned_stage(kind: str) -> None:
    stage, images = learned(kind), smooth_images(4)
    stage.fit_scale(stage.raw(images))
    torch.manual_seed(1)
    restored = VqAutoencoder(3, num_embeddings=32, **SIZES) if kind == "vq" else KlAutoencoder(3, **SIZES)
    restored.load_state_dict(stage.state_dict())
    assert torch.equal(restored.decode(restored.encode(images)), stage.decode(stage.encode(images)))
