"""Anchors: what the shift does to tokens, what it must not depend on, and that a state dict holds all of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from raydis.models.anchors import Anchors, Mode

N, D, K = 4, 6, 8
OPTIONS: dict[str, Any] = {"num_gaussians": 5, "num_splits": 2, "split_spread": 0.3, "min_count": 10.0, "em_steps": 20}


def tokens(num_samples: int = 400, seed: int = 0) -> Tensor:
    """Non-negative tokens on a curve a unit, (S, N, D), as a last ReLU leaves them but without exact zeros."""
    weights = torch.Generator().manual_seed(11)
    slopes, starts = torch.randn(N, D, generator=weights), 2 * torch.rand(N, D, generator=weights)
    units = torch.rand(num_samples, N, 1, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.softplus(4 * (starts + slopes * units.sub(0.5)).sin()) + 0.01


def fitted(mode: Mode, shift_rate: float = 0.1, data: Tensor | None = None) -> Anchors:
    anchors = Anchors(N, D, mode=mode, max_gaussians=K, shift_rate=shift_rate)
    anchors.fit(tokens() if data is None else data, **OPTIONS, generator=torch.Generator().manual_seed(1))
    anchors.ramp.fill_(0.5)
    return anchors


@pytest.mark.parametrize("mode", ["off", "constant", "ramp", "release"])
def test_tokens_stay_before_the_first_fit_and_at_shift_rate_zero(mode: Mode) -> None:
    batch = tokens(16)
    fresh = Anchors(N, D, mode=mode, max_gaussians=K, shift_rate=0.1)
    assert torch.equal(fresh(batch), batch)
    assert not fresh.fitted
    assert (fresh.assign(batch).component == -1).all()
    assert torch.equal(fitted(mode, shift_rate=0.0)(batch), batch)
    assert torch.equal(fitted(mode)(batch), batch) == (mode == "off")


@pytest.mark.parametrize("mode", ["constant", "ramp", "release"])
def test_tokens_of_inactive_units_stay(mode: Mode) -> None:
    data = tokens()
    data[:, 2] = 1.0
    anchors = fitted(mode, data=data)
    batch = tokens(16)
    shifted = anchors(batch)
    assert anchors.active.tolist() == [True, True, False, True]
    assert torch.equal(shifted[:, 2], batch[:, 2])
    assert (shifted[:, [0, 1, 3]] != batch[:, [0, 1, 3]]).any(-1).all()
    assignment = anchors.assign(batch)
    assert (assignment.component[:, 2] == -1).all()
    assert (assignment.responsibility[:, 2] == 0).all()


def test_assignment_equals_one_distribution_object_per_unit_and_component() -> None:
    anchors, batch = fitted("constant"), tokens(64, seed=3)
    assignment = anchors.assign(batch)
    for i in range(N):
        normalised = (batch[:, i].double() - anchors.offset[i].double()) / anchors.scale[i].double()
        scores = torch.full((64, K), -torch.inf, dtype=torch.float64)
        for k in anchors.alive[i].nonzero().flatten().tolist():
            whitening = anchors.precision_cholesky[i, k].double()
            gaussian = MultivariateNormal(anchors.means[i, k].double(), precision_matrix=whitening.T @ whitening)
            scores[:, k] = anchors.log_weights[i, k].double() + gaussian.log_prob(normalised)
        posterior, component = scores.softmax(-1).max(-1)
        certain = posterior > 0.501
        assert certain.float().mean() > 0.95
        assert torch.equal(assignment.component[certain, i], component[certain])
        torch.testing.assert_close(assignment.responsibility[:, i].double(), posterior, atol=5e-3, rtol=0)


def test_every_anchor_is_a_mean_of_its_own_unit_in_token_coordinates() -> None:
    anchors, batch = fitted("constant"), tokens(64)
    chosen, _ = anchors.pull(batch)
    component, means = anchors.assign(batch).component, anchors.anchor_tokens()
    assert means.shape == (N, K, D)
    assert (means[~anchors.alive] == 0).all()
    for i in range(N):
        assert anchors.alive[i, component[:, i]].all()
        assert torch.equal(chosen[:, i], means[i, component[:, i]])
        # A mean in token coordinates lies among the tokens.
        assert means[i][anchors.alive[i]].min() >= tokens()[:, i].min()
        assert means[i][anchors.alive[i]].max() <= tokens()[:, i].max()


def test_constant_lambda_is_the_shift_rate_however_far_the_anchor() -> None:
    anchors, near = fitted("constant", shift_rate=0.3), tokens(64)
    for batch in (near, 1e3 * near, near.double(), near.bfloat16()):
        chosen, rates = anchors.pull(batch)
        assert torch.equal(rates, torch.full((64, N), 0.3))
        torch.testing.assert_close(anchors(batch), (0.7 * batch + 0.3 * chosen).to(batch.dtype))
    whole = fitted("constant", shift_rate=1.0)
    torch.testing.assert_close(whole(near), whole.pull(near)[0])


def test_ramp_lambda_is_the_share_of_the_budget() -> None:
    anchors, batch = fitted("ramp", shift_rate=0.8), tokens(16)
    anchors.ramp.fill_(0.25)
    chosen, rates = anchors.pull(batch)
    torch.testing.assert_close(rates, torch.full((16, N), 0.2))
    torch.testing.assert_close(anchors(batch), 0.8 * batch + 0.2 * chosen)
    anchors.ramp.fill_(0.0)
    assert torch.equal(anchors(batch), batch)
    everything = fitted("ramp", shift_rate=1.0)
    everything.ramp.fill_(1.0)
    torch.testing.assert_close(everything(batch), everything.pull(batch)[0])


def test_a_token_on_its_anchor_stays() -> None:
    anchors = fitted("constant")
    for i in range(N):
        k = int(anchors.log_weights[i].argmax())
        batch = tokens(1)
        batch[0, i] = anchors.anchor_tokens()[i, k]
        assert torch.equal(anchors(batch)[0, i], batch[0, i])


@pytest.mark.parametrize("mode", ["constant", "ramp"])
def test_repeated_shifts_contract_to_the_anchor(mode: Mode) -> None:
    anchors, start = fitted(mode, shift_rate=0.5), tokens(32)
    target, _ = anchors.pull(start)
    settled = (anchors.assign(target).component == anchors.assign(start).component).all(1)
    assert settled.any()
    batch, distances = start[settled], []
    for _ in range(60):
        distances.append((batch - target[settled]).norm(dim=-1))
        batch = anchors(batch)
    assert (torch.stack(distances).diff(dim=0) <= 1e-6).all()
    torch.testing.assert_close(batch, target[settled], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["constant", "ramp"])
def test_a_sample_does_not_depend_on_its_batch_mates(mode: Mode) -> None:
    anchors, batch = fitted(mode), tokens(64)
    whole = anchors(batch)
    assert torch.equal(torch.cat([anchors(row) for row in batch.split(1)]), whole)
    assert torch.equal(anchors(batch.flip(0)).flip(0), whole)


def test_the_released_shift_does_depend_on_batch_mates() -> None:
    anchors, batch = fitted("release"), tokens(64)
    assert not torch.allclose(anchors(batch)[:1], anchors(batch[:1]), rtol=1e-4)


@pytest.mark.parametrize("mode", ["constant", "ramp"])
def test_the_gradient_of_a_token_is_one_minus_lambda(mode: Mode) -> None:
    anchors, batch = fitted(mode, shift_rate=0.4), tokens(8).requires_grad_()
    (gradient,) = torch.autograd.grad(anchors(batch).sum(), batch)
    rates = anchors.pull(batch)[1][..., None].expand_as(batch)
    torch.testing.assert_close(gradient, 1 - rates)
    assert not rates.requires_grad


def released(anchors: Anchors, batch: Tensor) -> tuple[Tensor, Tensor]:
    """The published formula, unit by unit and component by component: shifted tokens and lambda."""
    picked = torch.empty_like(batch)
    for i in range(N):
        c = batch[:, i]
        hat = (c - c.max()) / (c.max() - c.min() + 1e-6)
        scores = []
        for k in anchors.alive[i].nonzero().flatten().tolist():
            whitening = anchors.precision_cholesky[i, k].double()
            gaussian = MultivariateNormal(anchors.means[i, k].double(), precision_matrix=whitening.T @ whitening)
            scores.append(anchors.log_weights[i, k] + gaussian.log_prob(hat.double()))
        picked[:, i] = anchors.means[i, anchors.alive[i]][torch.stack(scores, 1).argmax(1)]
    rate = anchors.shift_rate * torch.exp(-((batch - picked) / (batch + 1e-6)).abs().mean())
    return rate * picked + (1 - rate) * batch, rate


def test_release_mode_is_the_published_formula_with_its_gradient() -> None:
    anchors, batch = fitted("release"), tokens(32).requires_grad_()
    expected, rate = released(anchors, batch)
    torch.testing.assert_close(anchors(batch), expected)
    assert rate > 1e-5
    torch.testing.assert_close(
        torch.autograd.grad(anchors(batch).square().sum(), batch)[0],
        torch.autograd.grad(expected.square().sum(), batch)[0],
    )


def test_a_unit_without_a_mixture_has_no_part_in_the_released_lambda() -> None:
    data = tokens()
    data[:, 2] = 1.0
    anchors, batch = fitted("release", data=data), tokens(32)
    chosen, rates = anchors.pull(batch)
    active = [0, 1, 3]
    distance = ((batch - chosen)[:, active] / (batch[:, active] + 1e-6)).abs().mean()
    torch.testing.assert_close(rates, (0.1 * torch.exp(-distance)).expand(32, N))
    batch[:, 2] *= 100.0
    assert torch.equal(anchors.pull(batch)[1], rates)


def test_released_lambda_never_reaches_a_tenth_and_vanishes_with_exact_zeros() -> None:
    anchors, batch = fitted("release"), tokens(32)
    assert 0 < anchors.pull(batch)[1].max() <= 0.0368
    far = 1e4 * batch  # q / c -> 0: the largest lambda that tokens >= 0 can have
    assert float(anchors.pull(far)[1].max()) == pytest.approx(0.1 / math.e, rel=1e-3)
    batch[..., 0] = 0.0
    assert (anchors.pull(batch)[1] == 0).all()
    assert torch.equal(anchors(batch), batch)


@pytest.mark.parametrize("mode", ["constant", "ramp", "release"])
def test_a_state_dict_restores_every_output_bit_for_bit(mode: Mode) -> None:
    anchors, batch = fitted(mode), tokens(32)
    copy = Anchors(N, D, mode=mode, max_gaussians=K, shift_rate=0.1)
    copy.load_state_dict(anchors.state_dict())
    assert torch.equal(copy(batch), anchors(batch))
    assert copy.fitted
    for name, value in vars(anchors.assign(batch)).items():
        assert torch.equal(getattr(copy.assign(batch), name), value), name
    assert torch.equal(copy.anchor_tokens(), anchors.anchor_tokens())


def test_a_refit_replaces_the_mixtures_in_place() -> None:
    anchors = fitted("constant")
    addresses = {name: buffer.data_ptr() for name, buffer in anchors.named_buffers()}
    before = anchors.means.clone()
    data = 3 * tokens(seed=9)
    data[:, 0] = 0.0
    mixtures = anchors.fit(data, **OPTIONS, generator=torch.Generator().manual_seed(2))
    assert mixtures.reasons == ("collapsed", "", "", "")
    assert {name: buffer.data_ptr() for name, buffer in anchors.named_buffers()} == addresses
    assert not torch.equal(anchors.means, before)
    assert anchors.active.tolist() == [False, True, True, True]
    assert not anchors.alive[0].any()


def test_a_refit_goes_on_from_the_mixtures_before_it() -> None:
    anchors, other = fitted("constant"), Anchors(N, D, mode="constant", max_gaussians=K, shift_rate=0.1)
    before = anchors.means.clone()
    for each in (anchors, other):
        each.fit(tokens(), **OPTIONS, generator=torch.Generator().manual_seed(2))
    assert (anchors.means - before).abs().max() < 0.1
    assert (other.means - before).abs().max() > 0.2  # what other seeds lead to


def test_autocast_does_not_touch_the_assignment() -> None:
    anchors, batch = fitted("constant"), tokens(64)
    with torch.autocast("cpu", torch.bfloat16):
        inside, shifted = anchors.assign(batch), anchors(batch)
        half = anchors(batch.bfloat16())
    assert torch.equal(inside.component, anchors.assign(batch).component)
    assert torch.equal(shifted, anchors(batch))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["constant", "ramp", "release"])
def test_the_shift_is_one_graph_without_a_wait_for_the_device(mode: Mode) -> None:
    anchors, batch = fitted(mode), tokens(16)
    # fullgraph refuses Python branches on data and .item(), which would also break a CUDA graph.
    compiled = torch.compile(anchors, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), anchors(batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "soft"}, "mode='soft' must be off, constant, ramp or release"),
        ({"shift_rate": 1.5}, r"shift_rate=1\.5 must lie in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Anchors(N, D, **{"mode": "off", "max_gaussians": K, "shift_rate": 0.1, **options})


def test_tokens_of_another_model_are_refused() -> None:
    anchors = Anchors(N, D + 1, mode="constant", max_gaussians=K, shift_rate=0.1)
    with pytest.raises(ValueError, match=r"tokens must have shape \(S, 4, 7\), found \(400, 4, 6\)"):
        anchors.fit(tokens(), **OPTIONS, generator=torch.Generator())


def tracking(inertia: float | None, mode: Mode = "constant") -> Anchors:
    anchors = Anchors(N, D, mode=mode, max_gaussians=K, shift_rate=0.1, inertia=inertia)
    anchors.fit(tokens(), **OPTIONS, generator=torch.Generator().manual_seed(1))
    return anchors


def test_a_step_moves_each_mean_as_if_it_were_that_many_tokens() -> None:
    anchors, batch = tracking(inertia=5.0), tokens(40, seed=3)
    before, component = anchors.means.clone(), anchors.assign(batch).component
    normalised = (batch - anchors.offset[:, None]) / anchors.scale[:, None]
    anchors.train()(batch[:25])
    anchors(batch[25:])  # parts of a batch count together,
    assert torch.equal(anchors.means, before)  # once the step ends
    anchors.track()
    for unit in range(N):
        for k in range(K):
            members = normalised[component[:, unit] == k, unit]
            expected = (5.0 * before[unit, k] + members.sum(0)) / (5.0 + len(members))
            torch.testing.assert_close(anchors.means[unit, k], expected)
    moved = anchors.means.clone()
    anchors.track()
    assert torch.equal(anchors.means, moved)  # each token counts once


@pytest.mark.parametrize(("inertia", "mode"), [(None, "constant"), (5.0, "release"), (5.0, "off")])
def test_means_stand_still_without_inertia_and_in_parity_mode(inertia: float | None, mode: Mode) -> None:
    anchors = tracking(inertia, mode).train()
    before = anchors.means.clone()
    anchors(tokens(40, seed=3))
    anchors.track()
    assert torch.equal(anchors.means, before)


def test_tokens_that_are_only_looked_at_move_no_mean() -> None:
    anchors = tracking(inertia=5.0).eval()
    before = anchors.means.clone()
    anchors(tokens(40, seed=3))
    anchors.track()
    assert torch.equal(anchors.means, before)


def test_means_stay_with_tokens_that_drift() -> None:
    """A curve that moves by its own extent over 100 steps: fitted once, or followed."""
    distance = {}
    for inertia in (None, 8.0):
        anchors, drift = tracking(inertia).train(), 0.0
        for step in range(100):
            drift = step / 100
            anchors(tokens(32, seed=step) + drift)
            anchors.track()
        late = tokens(200, seed=1000) + drift
        distance[inertia] = float((anchors.nearest(anchors.assign(late).component) - late).norm(dim=-1).mean())
    assert distance[8.0] < 0.3 * distance[None]


def test_autocast_around_a_step_leaves_no_rounding_in_the_means() -> None:
    moved = []
    for enabled in (False, True):
        anchors = tracking(inertia=5.0).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            anchors(tokens(40, seed=3))
        anchors.track()
        moved.append(anchors.means)
    assert torch.equal(*moved)
