"""Time of Dynamic Gaussian Anchoring: raydis against loops over units and components.

    python -m tests.benchmarks.mixture [--device cpu|cuda] [--rounds 3]

Plain is an own rewrite of the released procedure's shape (arXiv 2410.23820): one MultivariateNormal object a unit and
component, a fixed number of EM steps, an E-step over the whole mixture for every component's spread, and a
two-component EM for every split. It fits one unit, and its time is multiplied by the number of units. Both sides run
rounds in turn; the least time of a side counts: CPU-seconds of one thread, on CUDA seconds between synchronisations.
Tokens come from untrained MLPs (1-256-512-32), the hard case: trained ones have dead entries and so fewer axes.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from raydis.models.anchors import Anchors
from raydis.models.em import run_em, seed
from raydis.models.encoder import UnitMLP
from raydis.models.mixture import fit_mixtures

SEED = 0
NUM_UNITS, UNIT_DIM, NUM_SAMPLES, MAX_GAUSSIANS = 20, 32, 10_000, 32
OPTIONS = {"num_gaussians": 8, "num_splits": 3, "min_count": 10.0, "em_steps": 30}


def make_tokens(scalars: str, device: str) -> Tensor:
    """Tokens (S, N, D) of scalars that are standard normal or lie at six levels, as a discrete factor's would."""
    torch.manual_seed(SEED)
    units = torch.randn(NUM_SAMPLES, NUM_UNITS)
    if scalars == "levels":
        units = 2.0 * torch.randint(6, units.shape) - 5.0 + 0.15 * units
    with torch.no_grad():
        return UnitMLP(NUM_UNITS, UNIT_DIM, (256, 512), "relu")(units).to(device)


def gaussian(mean: Tensor, covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, covariance + 1e-6 * torch.eye(len(mean), device=mean.device))


def plain_e_step(points: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """(S, D) -> responsibilities (S, K)."""
    parts = zip(weights, means, covariances, strict=True)
    return torch.stack([w.log() + gaussian(m, c).log_prob(points) for w, m, c in parts], 1).softmax(1)


def plain_em(points: Tensor, mixture: tuple[Tensor, ...], num_steps: int) -> tuple[Tensor, ...]:
    for _ in range(num_steps):
        posterior = plain_e_step(points, *mixture)
        counts = posterior.sum(0).clamp_min(1e-6)
        means, covariances = [], []
        for k in range(len(counts)):
            means.append((posterior[:, k : k + 1] * points).sum(0) / counts[k])
            residual = points - means[-1]
            covariances.append((posterior[:, k : k + 1] * residual).T @ residual / counts[k])
        mixture = counts / counts.sum(), torch.stack(means), torch.stack(covariances)
    return mixture


def plain_start(points: Tensor, num_gaussians: int) -> tuple[Tensor, ...]:
    chosen = torch.randperm(len(points))[:num_gaussians].to(points.device)
    eye = torch.eye(points.shape[1], device=points.device).repeat(num_gaussians, 1, 1)
    return torch.full((num_gaussians,), 1 / num_gaussians, device=points.device), points[chosen], eye


def plain_fit(
    points: Tensor, split_spread: float, num_gaussians: int, num_splits: int, min_count: float, em_steps: int
):
    """One unit: initialise, EM, split, drop, EM."""
    weights, means, covariances = plain_em(points, plain_start(points, num_gaussians), em_steps)
    for _ in range(num_splits):
        for k in range(len(weights)):
            member = plain_e_step(points, weights, means, covariances)[:, k] > 0.5
            spread = (points[member] - points[member].mean(0)).norm(dim=1).mean()
            if int(member.sum()) < 2 * UNIT_DIM or spread <= split_spread or len(weights) == MAX_GAUSSIANS:
                continue
            _, pair, pair_covariances = plain_em(points[member], plain_start(points[member], 2), em_steps)
            weights = torch.cat([weights, weights[k : k + 1] / 2])
            weights[k] /= 2
            means, covariances = torch.cat([means, pair[1:]]), torch.cat([covariances, pair_covariances[1:]])
            means[k], covariances[k] = pair[0], pair_covariances[0]
    keep = plain_e_step(points, weights, means, covariances).sum(0) >= min_count
    return plain_em(points, (weights[keep] / weights[keep].sum(), means[keep], covariances[keep]), em_steps)


def plain_assign(tokens: Tensor, anchors: Anchors, covariances: Tensor) -> Tensor:
    """Most responsible components (B, N): one distribution object a unit and component, made anew every step."""
    chosen = []
    for i in range(NUM_UNITS):
        points = (tokens[:, i] - anchors.offset[i]) / anchors.scale[i]
        alive = anchors.alive[i]
        weights = anchors.log_weights[i, alive].exp()
        chosen.append(plain_e_step(points, weights, anchors.means[i, alive], covariances[i, alive]).argmax(1))
    return torch.stack(chosen, 1)


def race(ours: Callable[[], object], plain: Callable[[], object], rounds: int, device: str) -> tuple[float, float]:
    """Least seconds of each side over alternating rounds; one uncounted call of each comes first."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, taken in zip((ours, plain), times, strict=True):
            start = clock()
            side()
            if device == "cuda":
                torch.cuda.synchronize()
            if number > 0:
                taken.append(clock() - start)
    return min(times[0]), min(times[1])


def report(name: str, ours: float, plain: float, note: str = "") -> None:
    print(f"{name:<44}{ours:>10.4f}{plain:>12.4f}{plain / ours:>9.1f}x  {note}", flush=True)


def race_em_step(tokens: Tensor, num_gaussians: int, rounds: int, device: str) -> None:
    """One EM step on all D coordinates, without leaving axes out."""
    points = (tokens - tokens.mean(0)).permute(1, 2, 0).double().contiguous()
    points /= points.amax((1, 2), keepdim=True) - points.amin((1, 2), keepdim=True)
    draws = torch.rand(NUM_UNITS, num_gaussians, dtype=torch.float64, device=device)
    state = run_em(points, seed(points, draws), 2, 0.0, [])
    single = points[0].T.contiguous()
    mixture = state.log_weights[0].exp(), state.means[0], state.covariances[0]
    ours, plain = race(lambda: run_em(points, state, 1, 0.0, []), lambda: plain_em(single, mixture, 1), rounds, device)
    report(f"EM step, {num_gaussians} Gaussians", ours, plain * NUM_UNITS)


def race_fit(scalars: str, split_spread: float, device: str) -> None:
    tokens = make_tokens(scalars, device)
    unit = tokens[:, 0].double()
    unit = (unit - unit.max()) / (unit.max() - unit.min() + 1e-6)
    found: list[int] = []

    def ours() -> None:
        generator = torch.Generator().manual_seed(SEED)
        options = {**OPTIONS, "max_gaussians": MAX_GAUSSIANS, "split_spread": split_spread}
        mixtures = fit_mixtures(tokens, **options, generator=generator)
        found[:] = [int(mixtures.alive.sum()) // NUM_UNITS, len(mixtures.log_likelihood)]

    def plain() -> None:
        torch.manual_seed(SEED)
        found.append(len(plain_fit(unit, split_spread, **OPTIONS)[0]))

    times = race(ours, plain, 1, device)
    note = f"K {found[0]} after {found[1]} steps; plain K {found[2]} after {2 * OPTIONS['em_steps']} and splits"
    report(f"fit, scalars {scalars}, spread {split_spread}", times[0], times[1] * NUM_UNITS, note)


def race_assign(tokens: Tensor, num_gaussians: int, batch_size: int, rounds: int, device: str) -> None:
    anchors = Anchors(NUM_UNITS, UNIT_DIM, mode="constant", max_gaussians=num_gaussians, shift_rate=0.1).to(device)
    anchors.fit(
        tokens[:2000],
        num_gaussians=num_gaussians,
        num_splits=0,
        split_spread=1.0,
        min_count=1.0,
        em_steps=3,
        generator=torch.Generator().manual_seed(SEED),
    )
    precision = anchors.precision_cholesky.mT @ anchors.precision_cholesky
    covariances = torch.linalg.inv(precision.double()) - 1e-6 * torch.eye(UNIT_DIM, device=device)
    covariances, batch = covariances.float(), tokens[:batch_size]
    agree = (plain_assign(batch, anchors, covariances) == anchors.assign(batch).component).float().mean()
    ours, plain = race(lambda: anchors(batch), lambda: plain_assign(batch, anchors, covariances), rounds, device)
    report(f"shift, batch {batch_size}, {num_gaussians} Gaussians", ours, plain, f"same component {agree:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = f"one thread of {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    device = load if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, seed {SEED}; N {NUM_UNITS}, D {UNIT_DIM}, S {NUM_SAMPLES}")
    print(f"{'seconds for all units':<44}{'raydis':>10}{'plain':>12}{'ratio':>10}")
    tokens = make_tokens("normal", args.device)
    for num_gaussians in (8, MAX_GAUSSIANS):
        race_em_step(tokens, num_gaussians, args.rounds, args.device)
    for num_gaussians in (8, MAX_GAUSSIANS):
        for batch_size in (64, 512):
            race_assign(tokens, num_gaussians, batch_size, args.rounds, args.device)
    for scalars, split_spread in (("normal", 0.5), ("levels", 0.5), ("levels", 0.05)):
        race_fit(scalars, split_spread, args.device)


if __name__ == "__main__":
    main()
