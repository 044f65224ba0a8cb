from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.diffusion.samplers import SAMPLERS, Sampler
from raydis.methods.contract import Batch, Draws
from raydis.methods.dyga_sd import DygaSd

SIZE, UNITS, DIM = 16, 4, 8  # of the tiny preset


def images(count: int = 4, *, seed: int = 0) -> Tensor:
    """Discs of random place, size and colours on plain grounds, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    place, size, colours = (torch.rand(count, n, generator=generator) for n in (2, 1, 6))
    axis = torch.linspace(0.0, 1.0, SIZE)
    rows = (axis[:, None] - place[:, 0, None, None]).square()
    columns = (axis[None, :] - place[:, 1, None, None]).square()
    inside = (rows + columns < (0.1 + 0.3 * size[:, :, None]).square())[:, None]
    return torch.where(inside, colours[:, :3, None, None], colours[:, 3:, None, None]) * 2 - 1


def untrained(*, seed: int = 0, unet: dict | None = None, **sections: dict) -> DygaSd:
    """The tiny preset without Skip Dropout, its first stage fitted."""
    sections["unet"] = {"skip_dropout_rate": 0.0, **(unet or {})}
    torch.manual_seed(seed)
    method = build_method(RunConfig.model_validate(expand({"preset": "tiny", "method": sections})), 3)
    method.first_stage.fit(images(64, seed=100))
    return method


def awake(**settings: object) -> DygaSd:
    """An evaluating method whose zero-initialised layers are drawn at random, as after some training."""
    method = untrained(**settings)
    for layer in method.unet.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            layer.reset_parameters()
    return method.eval()


def with_anchors(method: DygaSd) -> DygaSd:
    """The method after a fit of its mixtures to 256 images."""
    with torch.no_grad():
        tokens = method.encoder(images(256, seed=50))
    generator = torch.Generator().manual_seed(0)
    settings = {"num_gaussians": 2, "num_splits": 1, "split_spread": 0.5, "min_count": 4.0, "em_steps": 5}
    method.anchors.fit(tokens, **settings, generator=generator)
    assert method.anchors.active.any()
    return method


def draw(method: DygaSd, count: int = 4, *, seed: int = 0) -> Draws:
    return method.draw(count, torch.Generator().manual_seed(seed))


def loss_of(method: DygaSd, pictures: Tensor, draws: Draws) -> Tensor:
    losses = method(Batch(pictures, draws), "denoise")
    assert losses.keys() == {"loss"}
    return losses["loss"]


def start(count: int = 4, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 4, 4, generator=torch.Generator().manual_seed(seed))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_reference_preset_has_the_released_sizes_but_for_the_latents_channels() -> None:
    with torch.device("meta"):
        method = build_method(RunConfig.model_validate(expand({"preset": "reference"})), 3)
    assert num_parameters(method.encoder) == 23_570_324
    # the first and last convolutions meet a latent of 12 channels, 3 in the released autoencoder
    assert num_parameters(method.unet) == 37_549_507 + 9 * (2 * 9 * 64 + 1)
    assert method.latent_shape == (12, 16, 16)


def test_all_weights_belong_to_the_one_move_and_are_averaged() -> None:
    method = untrained()
    (move,) = method.moves
    assert sum(weight.numel() for weight in move.weights) == num_parameters(method)
    assert list(method.averaged_modules) == list(move.modules) == [method.encoder, method.unet]


def test_draws_have_the_latents_shape_and_depend_on_their_generator_alone() -> None:
    method = untrained()
    draws = draw(method, 5)
    assert draws["noise"].shape == (5, 6, 4, 4)
    assert draws["timesteps"].shape == (5,)
    torch.manual_seed(99)
    again, other = draw(method, 5), draw(method, 5, seed=1)
    assert torch.equal(draws["noise"], again["noise"])
    assert torch.equal(draws["timesteps"], again["timesteps"])
    assert not torch.equal(draws["noise"], other["noise"])


def test_the_first_loss_is_the_mean_of_a_folded_normal() -> None:
    method = untrained()
    assert loss_of(method, images(128), draw(method, 128)).item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)


def test_the_loss_is_the_distance_of_noises_on_latents_noised_as_diffusers_does() -> None:
    method = awake()
    draws = draw(method)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0155)
    noisy = scheduler.add_noise(method.first_stage.encode(images()), draws["noise"], draws["timesteps"])
    predicted = method.unet(noisy, draws["timesteps"], method.unet.condition(method.encode(images())))
    torch.testing.assert_close(loss_of(method, images(), draws), (predicted - draws["noise"]).abs().mean())


def test_gradients_reach_the_encoder_at_the_third_pass() -> None:
    """Zero-initialised layers hide the tokens: the last convolution first, then the ends of the residual branches."""
    method = untrained().train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    norms = []
    for step in range(3):
        optimizer.zero_grad()
        loss_of(method, images(), draw(method, seed=step)).backward()
        norms.append(sum(weight.grad.abs().sum().item() for weight in method.encoder.parameters()))
        optimizer.step()
    assert norms[:2] == [0.0, 0.0]
    assert norms[2] > 0.0


def test_overfitting_one_batch_lowers_its_loss_on_noise_it_has_not_seen() -> None:
    method = untrained().train()
    fresh = draw(method, 64, seed=1000)
    repeated = images().repeat(16, 1, 1, 1)
    before = loss_of(method, repeated, fresh).item()
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss_of(method, images(), draw(method, seed=step)).backward()
        optimizer.step()
    assert before == pytest.approx(0.798, abs=0.02)
    assert loss_of(method.eval(), repeated, fresh).item() < 0.8 * before


def test_autocast_does_not_round_the_latents() -> None:
    method = awake()
    seen: list[Tensor] = []
    method.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    draws = {"timesteps": torch.zeros(4, dtype=torch.long), "noise": start()}
    loss_of(method, images(), draws)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(method, images(), draws)
    assert torch.equal(seen[0], seen[1])


def test_codes_are_the_lifted_units_and_the_tokens_before_a_first_fit_of_anchors() -> None:
    method = untrained().eval()
    units, codes = method.units(images()), method.encode(images())
    assert units.shape == (4, UNITS)
    assert codes.shape == (4, UNITS, DIM)
    assert torch.equal(codes, method.lift(units))
    assert torch.equal(codes, method.encoder(images()))


def test_fitted_anchors_shift_the_codes_that_training_and_encoding_use(monkeypatch: pytest.MonkeyPatch) -> None:
    method = with_anchors(untrained(anchors={"shift_rate": 0.5}).eval())
    conditioned: list[Tensor] = []
    project = method.unet.condition
    monkeypatch.setattr(method.unet, "condition", lambda codes: conditioned.append(codes) or project(codes))
    loss_of(method, images(), draw(method))
    assert torch.equal(conditioned[0], method.encode(images()))
    assert not torch.equal(conditioned[0], method.encoder(images()))


def test_the_end_of_a_step_moves_the_anchors_after_its_tokens() -> None:
    method = with_anchors(untrained(anchors={"inertia": 5.0})).train()
    before = method.anchors.means.clone()
    loss_of(method, images(), draw(method))
    assert torch.equal(method.anchors.means, before)
    method.end_step()
    assert not torch.equal(method.anchors.means, before)


def test_a_refit_leaves_the_encoder_and_its_statistics_as_they_are() -> None:
    method = untrained(anchors={"min_count": 4.0}, encoder={"norm": "batch"}).train()
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    assert any("running" in name for name in before)
    assert method.refit([images(128), images(128, seed=1)], torch.Generator().manual_seed(0)) == {}
    assert method.anchors.active.all()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_mode_off_keeps_the_tokens_whatever_was_fitted() -> None:
    method = with_anchors(untrained(anchors={"mode": "off"}).eval())
    assert torch.equal(method.encode(images()), method.encoder(images()))


def test_changing_one_unit_changes_its_code_alone() -> None:
    method = with_anchors(untrained().eval())
    units = method.units(images())
    changed = units.clone()
    changed[:, 1] += 0.5
    moved = (method.lift(changed) != method.lift(units)).any(2)
    assert moved.tolist() == [[False, True, False, False]] * 4


@pytest.mark.parametrize("mode", ["off", "constant", "ramp", "release"])
def test_an_image_is_encoded_without_its_batch_mates_but_in_mode_release(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = with_anchors(untrained(anchors={"mode": mode, "shift_rate": 0.5}).eval())
    method.begin_step(0.5)
    tokens = method.encoder.tokens.forward  # with the exact zeros of its ReLU, `release` would not move a token
    monkeypatch.setattr(method.encoder.tokens, "forward", lambda units: tokens(units) + 0.1)
    alone, among = method.encode(images()[:1]), method.encode(images())[:1]
    assert method.couples_codes is (mode == "release")
    assert torch.allclose(alone, among, rtol=1e-5, atol=1e-6) is not method.couples_codes


def test_decoding_is_repeatable_to_the_bit_and_stays_in_range() -> None:
    method = awake()
    codes = method.encode(images())
    decoded = method.decode(codes, start() * 5, 5, "ddim")
    assert decoded.shape == (4, 3, SIZE, SIZE)
    assert decoded.abs().max().item() == 1.0  # wild noise: clamped
    assert torch.equal(decoded, method.decode(codes, start() * 5, 5, "ddim"))


def test_codes_and_noise_both_decide_what_is_decoded() -> None:
    method = awake()
    codes = method.encode(images())
    decoded = method.decode(codes, start(), 5, "ddim")
    assert not torch.allclose(decoded, method.decode(codes.flip(0), start(), 5, "ddim"), atol=1e-4)
    assert not torch.allclose(decoded, method.decode(codes, start(seed=1), 5, "ddim"), atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_decodes_its_own_picture_of_the_same_codes(sampler: Sampler) -> None:
    method = awake()
    codes = method.encode(images())
    decoded = method.decode(codes, start(), 4, sampler)
    assert torch.equal(decoded, method.decode(codes, start(), 4, sampler))
    others = [method.decode(codes, start(), 4, other) for other in SAMPLERS if other != sampler]
    assert not any(torch.allclose(decoded, other, atol=1e-4) for other in others)


def know_the_data(method: DygaSd, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """Make the U-Net exact for latents N(m, 1) whose mean m, (B, 1, 1, 1), the codes decide; returns codes -> m."""

    def mean_of(condition: Tensor) -> Tensor:
        return condition.mean((1, 2)).view(-1, 1, 1, 1)

    def true_noise(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        level = method.denoising.alpha_bars[timesteps].view(-1, 1, 1, 1)
        return (1.0 - level).sqrt() * (noisy - level.sqrt() * mean_of(condition))

    monkeypatch.setattr(method.unet, "forward", true_noise)
    return lambda codes: mean_of(method.unet.condition(codes))


@pytest.mark.parametrize(("steps", "error"), [(10, 0.1), (20, 0.04), (50, 0.01)])
def test_inverted_noise_gives_the_latents_back_and_with_other_codes_moves_what_these_tell_alone(
    monkeypatch: pytest.MonkeyPatch, steps: int, error: float
) -> None:
    method = awake()
    mean_of = know_the_data(method, monkeypatch)
    torch.manual_seed(3)
    pictures = images() * 0.2  # far from the ends of [-1, 1], where decoding clamps
    latents, codes = method.first_stage.encode(pictures), 3.0 * torch.randn(4, UNITS, DIM)
    noise = method.invert(codes, pictures, steps)

    def draw_latents(codes: Tensor) -> Tensor:
        return method.first_stage.encode(method.decode(codes, noise, steps, "ddim"))

    assert noise.shape == latents.shape
    assert (draw_latents(codes) - latents).square().mean().sqrt() < error * latents.std()
    others = codes.flip(0)
    moved = mean_of(others) - mean_of(codes)
    assert moved.abs().max() > 0.02
    kept = draw_latents(others) - moved
    assert (kept - latents).square().mean().sqrt() < error * latents.std()


def test_swapping_units_obeys_its_identities() -> None:
    method = with_anchors(awake())
    source, target = method.units(images(1, seed=1)), method.units(images(1, seed=2))

    def draw_again(units: Tensor) -> Tensor:
        return method.decode(method.lift(units), start(1), 5, "ddim")

    def swap(first: Tensor, second: Tensor, chosen: list[int]) -> Tensor:
        swapped = first.clone()
        swapped[:, chosen] = second[:, chosen]
        return swapped

    once = swap(source, target, [2])
    assert not torch.allclose(draw_again(once), draw_again(source), atol=1e-5)
    assert torch.equal(draw_again(swap(source, source, [2])), draw_again(source))
    assert torch.equal(draw_again(swap(source, target, list(range(UNITS)))), draw_again(target))
    assert torch.equal(draw_again(swap(once, source, [2])), draw_again(source))


def test_one_starting_noise_serves_a_whole_batch() -> None:
    method = awake()
    codes = method.encode(images())
    together = method.decode(codes, start(1).expand(4, -1, -1, -1), 5, "ddim")
    alone = torch.cat([method.decode(code[None], start(1), 5, "ddim") for code in codes])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_the_state_dict_restores_what_encodes_and_decodes() -> None:
    method = with_anchors(awake())
    method.calibrate([images(32)])
    restored = awake(seed=1)
    assert not torch.equal(restored.encode(images()), method.encode(images()))
    restored.load_state_dict(method.state_dict())
    codes = method.encode(images())
    assert torch.equal(restored.encode(images()), codes)
    assert torch.equal(restored.decode(codes, start(), 3, "ddim"), method.decode(codes, start(), 3, "ddim"))
    assert torch.equal(restored.unit_quantiles, method.unit_quantiles)


def test_unit_quantiles_are_evenly_spaced_in_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    method = untrained()
    monkeypatch.setattr(method, "units", lambda images: images)
    ranks = torch.arange(101.0)
    units = torch.stack([ranks, -ranks, 2 * ranks, torch.zeros(101)], dim=1)
    shuffled = units[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    method.calibrate(shuffled.split(40))  # the parts are no whole share
    steps = torch.arange(21.0) * 5
    torch.testing.assert_close(method.unit_quantiles, torch.stack([steps, steps - 100, 2 * steps, 0 * steps]))
