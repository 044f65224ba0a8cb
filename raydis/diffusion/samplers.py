"""Samplers: from noise to latents along the probability-flow ODE, without further randomness, and back again.

All are fed the network's prediction x of z_0. With a = sqrt(ab), s = sqrt(1 - ab) and l = log(a / s), a step from l to
l + h would be exact for an x that stays the same (Lu et al., arXiv 2211.01095, proposition 4.1):

    z' = (s' / s) z + a' (1 - exp(-h)) x

`ddim` takes this step, `dpmpp_2m` lets x go on along l as it last changed, and `unipc` moreover corrects each z by the
x that is found there. Every sampler calls the network once a step, and its last step, to s = 0, is x itself.

B batch, C H W latent, S sampling steps, T timesteps of the schedule.
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
# 20 steps of UniPC end nearer to where DDIM's 1000 do than 50 of DDIM: `python -m tests.benchmarks.samplers`.
DEFAULT_SAMPLER: Sampler = "unipc"
DEFAULT_STEPS = 20
LEAST_ALPHA_BAR = 5e-4  # ldm_linear ends at 6.7e-4

PredictSample = Callable[[Tensor, Tensor], Tensor]  # z_t (B, C, H, W) and t (B,) -> x (B, C, H, W)


class Step(NamedTuple):
    """From one time to the next: coefficients in double precision, on the host."""

    time: int
    shrink: float  # s' / s
    gain: float  # a' (1 - exp(-h))
    trend: float  # how much of x's last change the predictor adds to x
    corrector: tuple[float, float]  # how much of x's last change and of the one to come UniC adds to it


def sample(sampler: Sampler, predict: PredictSample, noise: Tensor, alpha_bars: Tensor, num_steps: int) -> Tensor:
    """Integrate from z_T = noise (B, C, H, W) to z_0 (B, C, H, W).

    Args:
        predict: called S times.
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
    """Evenly spaced times, falling: 100 of 1000 gives 991, 981, ..., 1, as latent-diffusion spaces them.

    That code rounds the stride down where S does not divide T, so that 300 of 1000 would start at 898, as if its
    latents were noise alone; here each time is rounded on its own and 300 start at 997. A single step starts at T - 1:
    at time 1 it would return the noise that it was given. All T steps visit every time, 0 too.
    """
    _check_steps(num_steps, num_timesteps)
    if num_steps == 1:
        return [num_timesteps - 1]
    first = 0 if num_steps == num_timesteps else 1
    return [num_timesteps * step // num_steps + first for step in reversed(range(num_steps))]


def linspace_timesteps(alpha_bars: Tensor, num_steps: int) -> list[int]:
    """Evenly spaced times, falling from `last_timestep`, where latents are noise, to 0, where next to none is left.

    Twenty leading times start at 951; what is wrong there is more than a solver of order two then does wrong.
    """
    _check_steps(num_steps, len(alpha_bars))
    return np.linspace(last_timestep(alpha_bars, num_steps), 0, num_steps).round().astype(int).tolist()


def karras_timesteps(alpha_bars: Tensor, num_steps: int) -> list[int]:
    """Times with s / a spaced by Karras et al. (arXiv 2206.00364, equation 5, rho = 7), from `last_timestep` to 0.

    The network was taught whole times: each level moves to the nearest one, and where several share a time, to the next
    free ones.
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
    """Where sampling from noise starts: the last time with ab >= 5e-4, or a later one where S asks for more.

    `cosine` goes on to ab = 2.4e-9, where a z_0 told by its noise, (z - s eps) / a, has 20,000 times the error of eps.
    """
    return max(int((alpha_bars >= LEAST_ALPHA_BAR).sum()), num_steps) - 1


def solver_steps(alpha_bars: Tensor, times: Sequence[int]) -> list[Step]:
    """The steps from each of the falling times to the next, and from the last one to s = 0.

    The first is of order one, having no x before it, and the last, whose h is infinite.
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
    """DDIM with eta = 0 (Song et al., arXiv 2010.02502, equation 12), which is DPM-Solver++ of order one."""
    z = noise
    for step in steps:
        z = step.shrink * z + step.gain * predict(z, _at(step.time, z))
    return z


@torch.no_grad()
def dpmpp_sample(predict: PredictSample, noise: Tensor, steps: Sequence[Step]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2)."""
    z = before = noise
    for step in steps:
        x = predict(z, _at(step.time, z))
        z = step.shrink * z + step.gain * (x + step.trend * (x - before))
        before = x
    return z


@torch.no_grad()
def unipc_sample(predict: PredictSample, noise: Tensor, steps: Sequence[Step]) -> Tensor:
    """UniPC of order two with B(h) = exp(h) - 1 (Zhao et al., arXiv 2302.04867, algorithms 1 and 2).

    Its predictor is DPM-Solver++(2M). Its corrector repeats the step that led to z, now that x at z is known too; one
    call of the network serves both.
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
    """From z_0 (B, C, H, W) to the z_T (B, C, H, W) that `ddim` would bring to it in as many steps, nearly.

    A DDIM step from z at (a, s) to z' at (a', s') has the noise e = (z - a x(z)) / s in it, so that

        z = (a / a') z' + (s - s' a / a') e(z),

    which has z on both sides (Meiri et al., arXiv 2312.12540). The usual inversion takes e(z') for e(z). Here e is
    found where z would be if e were still that of the step before: one call of the network a step as well, and an error
    of second order in the steps, not of first. What the network's last x does not take from its z, no inversion keeps.

    Args:
        predict, alpha_bars, num_steps: as for `sample`.
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
    """(a, s) of each time: looked up on the host once, so that the loops launch no copies and wait for nothing."""
    chosen = alpha_bars[torch.tensor(times, device=alpha_bars.device)].tolist()
    return [(level**0.5, (1.0 - level) ** 0.5) for level in chosen]


def _corrector(h: float, h_before: float) -> tuple[float, float]:
    """UniC's weights: where h_before is infinite those of order one, else the solution of its equation 5 for order two.

    In units of h, x is known at -h_before / h, at 0 and, to be weighed, at 1.
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
