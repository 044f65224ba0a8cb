"""Deterministic samplers: they solve the probability-flow ODE from noise to latents, and DDIM also in reverse.

B batch, C H W latent, S sampling steps, T timesteps of the schedule, ab (alpha_bar) a value of the schedule.

All samplers work on the network's prediction x of z_0. Let a = sqrt(ab), s = sqrt(1 - ab) and l = log(a / s). If x did
not change between l and l + h, this step would be exact (Lu et al., arXiv 2211.01095, proposition 4.1):

    z' = (s' / s) z + a' (1 - exp(-h)) x

`ddim` uses this step. `dpmpp_2m` extrapolates x linearly along l from its last change. `unipc` does the same, and then
corrects each z with the x that the network predicts there. Every sampler calls the network once for each step. The last
step leads to s = 0, and its result is x itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Sampler = Literal["ddim", "dpmpp_2m", "dpmpp_2m_karras", "unipc"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
# 20 steps of UniPC end nearer to the result of 1000 DDIM steps than 50 steps of DDIM do, as
# `python -m tests.benchmarks.samplers` shows.
DEFAULT_SAMPLER: Sampler = "unipc"
DEFAULT_STEPS = 20
LEAST_ALPHA_BAR = 5e-4  # ldm_linear ends at 6.7e-4

PredictSample = Callable[[Tensor, Tensor], Tensor]  # z_t (B, C, H, W) and t (B,) -> x (B, C, H, W)


def usual_steps(max_steps: int) -> int:
    """Return the number of sampling steps where neither a request nor a model chooses one: 20, if so many exist."""
    return min(DEFAULT_STEPS, max_steps)


class Step(NamedTuple):
    """The coefficients of a step from one time to the next, in double precision on the host."""

    time: int
    shrink: float  # s' / s
    gain: float  # a' (1 - exp(-h))
    trend: float  # the weight with which the predictor adds the last change of x to x
    corrector: tuple[float, float]  # the weights with which UniC adds the last change of x and the coming one


def sample(sampler: Sampler, predict: PredictSample, noise: Tensor, alpha_bars: Tensor, num_steps: int) -> Tensor:
    """Integrate from z_T = noise (B, C, H, W) to z_0 (B, C, H, W).

    Args:
        predict: returns the prediction of z_0; called S times.
        alpha_bars: (T,).
        num_steps: S, in [1, T].

    Raises:
        ValueError: an unknown sampler, or steps out of range.
    """
    match sampler:
        case "ddim":
            solve, times = ddim_sample, leading_timesteps(len(alpha_bars), num_steps)
        case "dpmpp_2m":
            solve, times = dpmpp_sample, linspace_timesteps(alpha_bars, num_steps)
        case "dpmpp_2m_karras":
            solve, times = dpmpp_sample, karras_timesteps(alpha_bars, num_steps)
        case "unipc":
            solve, times = unipc_sample, linspace_timesteps(alpha_bars, num_steps)
        case _:
            raise ValueError(f"unknown sampler {sampler!r}: use {', '.join(SAMPLERS)}")
    return solve(predict, noise, solver_steps(alpha_bars, times))


def leading_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Return evenly spaced times in falling order, as latent-diffusion does: 991, 981, ..., 1 for 100 steps of 1000.

    If S does not divide T, latent-diffusion rounds the stride down: 300 steps of 1000 start at 898, where latents are
    not noise alone, as the sampler assumes. Here each time is rounded separately, and 300 steps start at 997. A single
    step starts at T - 1, as at time 1 it would return the noise unchanged. T steps visit every time, including 0.
    """
    _check_steps(num_steps, num_timesteps)
    if num_steps == 1:
        return [num_timesteps - 1]
    first = 0 if num_steps == num_timesteps else 1
    return [num_timesteps * step // num_steps + first for step in reversed(range(num_steps))]


def linspace_timesteps(alpha_bars: Tensor, num_steps: int) -> list[int]:
    """Return evenly spaced times in falling order, from `last_timestep`, where latents are nearly noise, to 0.

    Twenty `leading_timesteps` would start at 951, where latents are not noise yet. The resulting error is larger than
    that of a solver of order two.
    """
    _check_steps(num_steps, len(alpha_bars))
    return np.linspace(last_timestep(alpha_bars, num_steps), 0, num_steps).round().astype(int).tolist()


def karras_timesteps(alpha_bars: Tensor, num_steps: int) -> list[int]:
    """Return times from `last_timestep` to 0 with the spacing of s / a by Karras et al. (arXiv 2206.00364).

    The spacing is equation 5 with rho = 7. As the network was trained at integer times, each time is rounded to an
    integer; times that would coincide move to the next free integers.
    """
    _check_steps(num_steps, len(alpha_bars))
    levels = alpha_bars[: last_timestep(alpha_bars, num_steps) + 1].cpu().double().numpy()
    sigmas = np.sqrt((1.0 - levels) / levels)  # rising with time
    wanted = np.linspace(sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7), num_steps)[::-1] ** 7
    order = np.arange(num_steps)
    times = np.interp(np.log(wanted), np.log(sigmas), np.arange(len(sigmas))).round().astype(int)
    times = np.maximum.accumulate(times - order) + order  # at least one apart
    return np.minimum(times, len(sigmas) - num_steps + order)[::-1].tolist()


def last_timestep(alpha_bars: Tensor, num_steps: int) -> int:
    """Return the time at which sampling starts: the last one with ab >= 5e-4, or S - 1 if that is later.

    The schedule `cosine` continues to ab = 2.4e-9. There, a z_0 that is computed from predicted noise, (z - s eps) / a,
    has 20,000 times the error of eps.
    """
    return max(int((alpha_bars >= LEAST_ALPHA_BAR).sum()), num_steps) - 1


def solver_steps(alpha_bars: Tensor, times: Sequence[int]) -> list[Step]:
    """Return the steps from each of the falling times to the next, and from the last time to s = 0.

    The first step is of order one because there is no earlier x, and the last step because its h is infinite.
    """
    levels = _levels(alpha_bars, times)
    steps, h_before = [], math.inf
    for time, (a, s), (next_a, next_s) in zip(times, levels, [*levels[1:], (1.0, 0.0)], strict=True):
        shrink, trend, corrector = next_s / s, 0.0, (0.0, 0.0)
        if next_s > 0.0:
            h = math.log(next_a / a / shrink)
            trend, corrector = h / (2.0 * h_before), _corrector(h, h_before)
            h_before = h
        steps.append(Step(time, shrink, next_a - a * shrink, trend, corrector))
    return steps


@torch.no_grad()
def ddim_sample(predict: PredictSample, noise: Tensor, steps: Sequence[Step]) -> Tensor:
    """Sample by DDIM with eta = 0 (Song et al., arXiv 2010.02502, equation 12), which is DPM-Solver++ of order one."""
    z = noise
    for step in steps:
        z = step.shrink * z + step.gain * predict(z, _at(step.time, z))
    return z


@torch.no_grad()
def dpmpp_sample(predict: PredictSample, noise: Tensor, steps: Sequence[Step]) -> Tensor:
    """Sample by DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2)."""
    z = before = noise
    for step in steps:
        x = predict(z, _at(step.time, z))
        z = step.shrink * z + step.gain * (x + step.trend * (x - before))
        before = x
    return z


@torch.no_grad()
def unipc_sample(predict: PredictSample, noise: Tensor, steps: Sequence[Step]) -> Tensor:
    """Sample by UniPC of order two with B(h) = exp(h) - 1 (Zhao et al., arXiv 2302.04867, algorithms 1 and 2).

    The predictor is DPM-Solver++(2M). The corrector repeats the step that led to z, with the x that the network
    predicts at z. The predictor then uses the same x, so one call of the network serves both.
    """
    z = start = before = earlier = noise
    last: Step | None = None
    for step in steps:
        x = predict(z, _at(step.time, z))
        if last is not None:
            past, coming = last.corrector
            z = last.shrink * start + last.gain * (before + past * (before - earlier) + coming * (x - before))
        start, last = z, step
        z = step.shrink * z + step.gain * (x + step.trend * (x - before))
        before, earlier = x, before
    return z


@torch.no_grad()
def ddim_invert(predict: PredictSample, latents: Tensor, alpha_bars: Tensor, num_steps: int) -> Tensor:
    """Invert DDIM: return the noise from which `ddim` draws the given latents in the same number of steps, nearly.

    A DDIM step from z at (a, s) to z' at (a', s') contains the noise e(z) = (z - a x(z)) / s, so that

        z = (a / a') z' + (s - s' a / a') e(z).

    This equation has z on both sides (Meiri et al., arXiv 2312.12540). The usual inversion replaces e(z) by e(z').
    Here z is first estimated with the noise of the previous step, and e is evaluated at this estimate. This also takes
    one call of the network for each step, but its error is of second order in the step size instead of first. Details
    that the last x does not take from its z are lost in any inversion.

    Args:
        predict, alpha_bars, num_steps: as for `sample`.
        latents: z_0, (B, C, H, W).

    Returns:
        z_T, (B, C, H, W).
    """
    times = leading_timesteps(len(alpha_bars), num_steps)[::-1]
    z, noise, last_a, last_s = latents, torch.zeros_like(latents), 1.0, 0.0
    for time, (a, s) in zip(times, _levels(alpha_bars, times), strict=True):
        kept, added = a / last_a, s - last_s * a / last_a
        guess = kept * z + added * noise
        noise = (guess - a * predict(guess, _at(time, z))) / s
        z = kept * z + added * noise
        last_a, last_s = a, s
    return z


def _check_steps(num_steps: int, num_timesteps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps={num_steps} must lie in [1, {num_timesteps}]")


def _levels(alpha_bars: Tensor, times: Sequence[int]) -> list[tuple[float, float]]:
    """Return (a, s) of each time. One look-up on the host spares the samplers a copy from the device at each step."""
    chosen = alpha_bars[torch.tensor(times, device=alpha_bars.device)].tolist()
    return [(level**0.5, (1.0 - level) ** 0.5) for level in chosen]


def _corrector(h: float, h_before: float) -> tuple[float, float]:
    """Return the weights of UniC: of order one if h_before is infinite, else the solution of its equation 5.

    In units of h, x is known at -h_before / h, at 0, and at 1, where the corrector evaluates it.
    """
    if h_before == math.inf:
        return 0.0, 0.5
    ratio, growth = h_before / h, math.expm1(-h)
    phi = -growth / h - 1.0
    first, second = phi / growth, -2.0 * (phi / h + 0.5) / growth
    past = (first - second) / (1.0 + ratio)
    return past / ratio, first - past


def _at(time: int, z: Tensor) -> Tensor:
    return torch.full((len(z),), time, device=z.device)
