"""DisDiff's losses and fields, with answers known beforehand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.diffusion.denoising import add_noise
from raydis.diffusion.samplers import sample
from raydis.methods.contract import Batch
from raydis.methods.disdiff import Disdiff, contrast
from raydis.models.autoencoders import VqAutoencoder
from tests.double import double_precision

UNET = {"model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [4], "num_heads": 2}
METHOD: dict[str, Any] = {
    "kind": "disdiff",
    "num_units": 4,
    "unit_dim": 3,
    "encoder": {"model_dim": 8, "norm": "group"},
    "concept_dim": 8,
    "pretrained": {"unet": UNET},
}
VQ = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "latent_dim": 3, "num_embeddings": 16}


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with double_precision():
        yield


def make(*, awake: bool = True, stage: dict[str, Any] | None = None, **over: Any) -> Disdiff:
    """A tiny model; `awake` if its layers that start at zero are drawn at random."""
    run = {"preset": "tiny", "first_stage": stage or {"kind": "patch_pca"}, "method": METHOD | over}
    torch.manual_seed(0)
    method = build_method(RunConfig.model_validate(expand(run)), 3)
    assert isinstance(method, Disdiff)
    method.start([pictures(64)], torch.Generator())
    if awake:
        for layer in method.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.any():
                layer.reset_parameters()
    return method.train()


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def batch_of(method: Disdiff, count: int = 6) -> Batch:
    return Batch(pictures(count), method.draw(count, torch.Generator().manual_seed(2)))


def gradients(method: Disdiff, loss: Tensor, module: nn.Module) -> Tensor:
    """The gradient of a loss in all weights of a module, as one vector."""
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(1) if each is None else each.flatten() for each in found])


# ---- the losses


def plainly(method: Disdiff, batch: Batch) -> dict[str, Tensor]:
    """All terms as the released code computes them: image by image, unit by unit, with a copy of the encoder."""
    diffusion, decoder = method.diffusion, method.decoder
    alpha_bars, judge = diffusion.denoising.alpha_bars, copy.deepcopy(method.encoder).eval().requires_grad_(False)
    latents = diffusion.first_stage.encode(batch.images)
    terms: dict[str, list[Tensor]] = {name: [] for name in ("loss", "reconstruction", "invariant", "variant")}
    for row, image in enumerate(batch.images):
        t, noise, chosen = (batch.draws[name][row : row + 1] for name in ("timesteps", "noise", "units"))
        ab = alpha_bars[t]
        before = alpha_bars[t - 1] if int(t) else torch.ones(1)
        z = ab.sqrt() * latents[row : row + 1] + (1 - ab).sqrt() * noise
        with torch.no_grad():
            features = diffusion.unet.contract(z, t)
            predicted = diffusion.unet(z, t)
        codes = method.encoder(image[None])
        fields = decoder(features, decoder.condition(codes))[:, 0]
        shift = -(ab / before).sqrt() * (1 - before) / (1 - ab).sqrt()
        reconstruction = (noise - (predicted + shift * fields.sum(0))).abs().mean()

        def clean(e: Tensor, z: Tensor = z, ab: Tensor = ab) -> Tensor:
            return z / ab.sqrt() - (1 / ab - 1).sqrt() * e

        without = clean(predicted)
        shifted = clean(predicted - (1 - ab).sqrt() * fields[chosen])
        y, y_c = diffusion.first_stage.decode(without), diffusion.first_stage.decode(shifted)
        target, plain, moved = judge(image[None]), judge(y), judge(y_c)
        distance = (plain - moved).square().sum(-1).sqrt()
        gain = (plain - target).square().sum(-1).sqrt() - (moved - target).square().sum(-1).sqrt()
        invariant, variant = F.cross_entropy(distance, chosen), F.cross_entropy(gain, chosen)
        effect = (y - y_c if method.weighting == "image" else without - shifted).detach().square().mean()
        terms["loss"].append(reconstruction + method.weight * effect * (invariant + variant))
        for name, term in (("reconstruction", reconstruction), ("invariant", invariant), ("variant", variant)):
            terms[name].append(term)
    return {name: torch.stack(each).mean() for name, each in terms.items()}


@pytest.mark.parametrize("weighting", ["latent", "image"])
def test_the_losses_and_their_gradients_are_those_of_the_released_code(weighting: str) -> None:
    method = make(weighting=weighting, disentanglement_weight=0.7)
    batch = batch_of(method)
    found, expected = method(batch, "shift"), plainly(method, batch)
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, rtol=1e-9, atol=1e-12)
    for module in (method.encoder, method.decoder):
        ours, theirs = gradients(method, found["loss"], module), gradients(method, expected["loss"], module)
        assert bool(ours.any())
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10 * float(theirs.abs().max()))


def test_logits_of_a_field_that_moves_its_unit_alone() -> None:
    """Known beforehand: one logit is the distance, the others are zero."""
    delta, num_units = 1.5, 5
    plain = torch.randn(3, num_units, 4)
    chosen, moved, step = torch.tensor([0, 2, 4]), plain.clone(), torch.zeros(4)
    step[1] = delta
    moved[torch.arange(3), chosen] += step
    expected = -math.log(math.exp(delta) / (math.exp(delta) + num_units - 1))
    towards, away = plain.clone(), plain.clone()
    towards[torch.arange(3), chosen] += 2 * step
    invariant, variant = contrast(towards, plain, moved, chosen)
    torch.testing.assert_close(invariant, torch.full_like(invariant, expected))
    torch.testing.assert_close(variant, torch.full_like(variant, expected))  # it comes nearer by as much
    away[torch.arange(3), chosen] -= step
    variant = contrast(away, plain, moved, chosen)[1]
    torch.testing.assert_close(
        variant, torch.full_like(variant, -math.log(1 / (1 + (num_units - 1) * math.exp(delta))))
    )


def test_a_field_that_moves_nothing_has_finite_gradients() -> None:
    plain = torch.randn(2, 3, 4, requires_grad=True)
    invariant, variant = contrast(plain.detach(), plain.detach(), plain, torch.tensor([0, 1]))
    torch.testing.assert_close(invariant, torch.full((2,), math.log(3)))
    (invariant + variant).sum().backward()
    assert plain.grad is not None
    assert bool(plain.grad.isfinite().all())


# ---- what is trained, and what is not


def test_the_frozen_model_and_its_mode_never_change_and_the_judge_has_no_gradient_of_its_own() -> None:
    method = make(encoder={"model_dim": 8, "norm": "batch"}, disentanglement_weight=1e6)
    assert method.encoder.training
    assert not any(module.training for module in method.diffusion.modules())
    before = copy.deepcopy(method.diffusion.state_dict())
    batch = batch_of(method)
    method(batch, "shift")["loss"].backward()
    assert all(weight.grad is None for weight in method.diffusion.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.diffusion.state_dict().items())
    assert method.encoder.training
    # One pass in training mode, over the images of the batch: the judge leaves the running statistics alone.
    norms = [module for module in method.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked or 0) for norm in norms] == [1] * len(norms)


def test_at_the_first_time_the_fields_reconstruct_nothing() -> None:
    method = make(disentanglement_weight=0.0)
    batch = batch_of(method)
    at_zero = batch._replace(draws=batch.draws | {"timesteps": torch.zeros(6, dtype=torch.long)})
    assert not bool(gradients(method, method(at_zero, "shift")["reconstruction"], method.decoder).any())
    later = batch._replace(draws=batch.draws | {"timesteps": torch.full((6,), 500)})
    assert bool(gradients(method, method(later, "shift")["reconstruction"], method.decoder).any())


def test_a_fresh_method_predicts_and_draws_as_the_frozen_model_alone() -> None:
    method = make(awake=False)
    nn.init.normal_(method.diffusion.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    batch = batch_of(method)
    losses = method(batch, "shift")
    torch.testing.assert_close(losses["loss"], method.diffusion(batch, "denoise")["loss"])
    torch.testing.assert_close(losses["invariant"], torch.tensor(math.log(4)))
    assert float(losses["effect"]) == 0.0
    diffusion, noise = method.diffusion, torch.randn(2, *method.noise_shape)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return diffusion.denoising.sample(diffusion.unet(z, t), z, diffusion.denoising.alpha_bars[t])

    with torch.no_grad():
        expected = diffusion.first_stage.decode(sample("ddim", predict, noise, diffusion.denoising.alpha_bars, 5))
    drawn = method.decode(method.encode(pictures(2)), noise, 5, "ddim")
    torch.testing.assert_close(drawn, expected.clamp(-1.0, 1.0))


# ---- fields


def test_predicted_latents_are_the_latents_if_the_noise_is_known() -> None:
    method = make()
    latents, noise = torch.randn(2, 3, *method.noise_shape)
    alpha_bar = method.diffusion.denoising.alpha_bars[torch.tensor([0, 400, 999])]
    found = method.predict(noise, add_noise(latents, noise, alpha_bar), alpha_bar)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-12)


def test_sampling_shifts_the_noise_by_the_published_coefficient() -> None:
    method = make()
    times = torch.tensor([0, 499, 999])
    nothing = torch.zeros(3, *method.noise_shape)
    found = method.shift(nothing, nothing + 1.0, method.diffusion.denoising.alpha_bars[times])[:, 0, 0, 0]
    expected = torch.tensor([-0.0387298, -0.9213700, -0.9996656])
    torch.testing.assert_close(found, expected, rtol=0, atol=6e-8)  # as many digits as were published


def test_a_swapped_unit_changes_its_own_field_alone() -> None:
    method, times = make(), torch.tensor([300, 300])
    z, codes = torch.randn(2, *method.noise_shape), method.encode(pictures(2))
    swapped = codes.clone()
    swapped[0, 2] = codes[1, 2]
    with torch.no_grad():
        features = method.diffusion.unet.contract(z, times)
        before, after = (method.decoder(features, method.decoder.condition(each)) for each in (codes, swapped))
    changed = [
        [bool((one != other).any()) for one, other in zip(*pair, strict=True)]
        for pair in zip(before, after, strict=True)
    ]
    assert changed == [[False, False], [False, False], [True, False], [False, False]]


def test_the_judge_sees_images_that_no_codebook_has_rounded() -> None:
    method = make(stage={"kind": "vq", "checkpoint": "x", **VQ})
    stage = method.autoencoder
    assert isinstance(stage, VqAutoencoder)
    latents = torch.randn(2, *method.noise_shape, requires_grad=True)
    image = method.picture(latents)
    torch.testing.assert_close(image, stage.decoder(stage.from_latent(latents / stage.scale)))
    (gradient,) = torch.autograd.grad(image.square().sum(), latents)
    assert bool(gradient.any())
    assert not torch.allclose(image, stage.decode(latents))
