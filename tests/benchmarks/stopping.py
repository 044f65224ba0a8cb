"""What early stopping saves, and where it fails: sweeps replayed from learning curves, with raydis' own decisions.

    python -m tests.benchmarks.stopping [--seeds 100] [--factors 2 3] [--at-once 4] [--runs SWEEP_FOLDER ...]

Curves come from three places: recorded ones in learning_curves.csv, the trials of finished sweeps that `--runs` names
(their folders; `evaluation.rungs` must have been set), and synthetic ones whose crossing is known. A seed is an order
in which the trials of a set arrive, and for synthetic sets also a draw of the curves.

For each set and policy, the table shows the share of the images that is spent, the hypervolume of the trials that
trained to the end as a share of that of all trials (mean and lowest over the seeds, reference 0), by how much the
standing (the mean of both objectives) of the best trial falls short, and how many images are saved: `saved` is 1 -
spent / needed, where `needed` images pay for as many complete runs, drawn at random, as reach the same mean
hypervolume. It is negative where complete runs need fewer images.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydis.engine.record import RunRecord
from raydis.sweep.halving import SuccessiveHalving

RECORDED = Path(__file__).with_name("learning_curves.csv")
OBJECTIVES = ("dci_disentanglement", "factor_vae")
NUM_SUBSETS = 50  # random subsets of complete runs for each size


@dataclass(frozen=True)
class Curves:
    """The learning curves of the trials of one sweep.

    Attributes:
        images: images seen at each rung and at the end, (R + 1,).
        scores: (N trials, R + 1, 2 objectives); higher is better.
    """

    images: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def last(self) -> NDArray[np.float64]:
        """The scores at the end, (N, 2)."""
        return self.scores[:, -1]

    @property
    def total_images(self) -> float:
        """The images of all trials if none is stopped."""
        return len(self.scores) * float(self.images[-1])


@dataclass(frozen=True)
class Policy:
    """How a sweep stops trials: on which objectives (their mean is one), and whether it pauses them."""

    name: str
    pause: bool
    on_mean: bool = False


POLICIES = (
    Policy("ASHA on the mean", pause=False, on_mean=True),
    Policy("fronts, stop", pause=False),
    Policy("fronts, pause", pause=True),
)


def hypervolume(points: NDArray[np.float64]) -> float:
    """Return the area that points (N, 2) dominate above the origin; larger is better."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))[::-1]]
    heights = np.maximum.accumulate(ordered[:, 1])
    return float(ordered[:, 0] @ np.diff(heights, prepend=0.0))


def replay(curves: Curves, policy: Policy, factor: float, order: Sequence[int], at_once: int) -> tuple[float, set[int]]:
    """Replay a sweep whose trials take the same time an image. Return the images spent, and the trials that ended."""
    rungs = curves.images[:-1].tolist()
    scores = curves.scores.mean(axis=2, keepdims=True) if policy.on_mean else curves.scores
    halving = SuccessiveHalving[int](["max"] * scores.shape[2], rungs, factor)
    waiting, paused, ended, spent = list(order), dict[int, float](), set[int](), 0.0
    running: list[tuple[float, int, int]] = []  # when it reaches its next mark, trial, that mark

    def start(trial: int, mark: int, now: float) -> None:
        before = curves.images[mark - 1] if mark else 0.0
        heapq.heappush(running, (now + curves.images[mark] - before, trial, mark))

    now = 0.0
    while True:
        while len(running) < at_once:
            promoted = halving.next_promotion(paused)
            if promoted is not None:
                start(promoted, rungs.index(paused.pop(promoted)) + 1, now)
            elif waiting:
                start(waiting.pop(0), 0, now)
            else:
                break
        if not running:
            return spent, ended
        now, trial, mark = heapq.heappop(running)
        spent += curves.images[mark] - (curves.images[mark - 1] if mark else 0.0)
        if mark == len(rungs):
            ended.add(trial)
            continue
        halving.record(rungs[mark], trial, scores[trial, mark].tolist())
        if trial in halving.going_on(rungs[mark]):
            start(trial, mark + 1, now)
        elif policy.pause:
            paused[trial] = rungs[mark]


def hypervolume_by_runs(last: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the mean hypervolume of 0, 1, ..., N complete runs, drawn at random without replacement."""
    count = len(last)
    found = np.zeros((NUM_SUBSETS, count + 1))
    for row in found:
        shuffled = last[rng.permutation(count)]
        row[1:] = [hypervolume(shuffled[:size]) for size in range(1, count + 1)]
    return found.mean(axis=0)


def kendall_tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Kendall's tau-a of two orders without ties."""
    upper = np.triu_indices(len(first), 1)
    return float(np.mean([np.sign(np.subtract.outer(first, first)[upper] * np.subtract.outer(second, second)[upper])]))


# ---- sets of curves


def recorded() -> dict[str, Curves]:
    """Return the recorded sets of learning_curves.csv."""
    runs: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    with open(RECORDED, newline="") as file:
        for row in csv.DictReader(file):
            point = (float(row["images_seen"]), *(float(row[name]) for name in OBJECTIVES))
            runs.setdefault(row["set"], {}).setdefault(row["run"], []).append(point)
    return {name: _curves(list(points.values())) for name, points in runs.items()}


def of_sweep(folder: Path) -> Curves:
    """Return the curves of a sweep's trials that have scores at every rung and at the end.

    Raises:
        SystemExit: fewer than three trials have.
    """
    runs = []
    for log in sorted(folder.glob("trial-*/result.json")):
        records = [RunRecord.from_ray(json.loads(line)) for line in log.read_text().splitlines()]
        scored = [record for record in records if record.scores and set(OBJECTIVES) <= set(record.values())]
        points = [(float(each.images_seen or 0), *(each.values()[name] for name in OBJECTIVES)) for each in scored]
        runs += [points] if scored and scored[-1].finished else []
    most = max((len(points) for points in runs), default=0)
    runs = [points for points in runs if len(points) == most]
    if len(runs) < 3 or most < 2:
        raise SystemExit(f"{folder} has {len(runs)} trials with scores at rungs and at the end: give a sweep with more")
    return _curves(runs)


def _curves(runs: list[list[tuple[float, ...]]]) -> Curves:
    table = np.array(runs)
    return Curves(np.median(table[:, :, 0], axis=0), table[:, :, 1:])


def synthetic(crossing: float, noise: float, count: int = 48) -> Callable[[int], Curves]:
    """Return a function from a seed to curves a * (1 - exp(-3 r t)) plus noise, at t = 1/9, 1/3 and 1.

    Args:
        crossing: how much slower (r) a trial is whose final value (a) is higher; 0: speed and final value are
            independent.
        noise: standard deviation of a score.
    """

    def draw(seed: int) -> Curves:
        rng = np.random.default_rng([seed, 17])
        times = np.array([1 / 9, 1 / 3, 1.0])
        common = rng.normal(size=(count, 1))
        quality = 0.6 * common + 0.8 * rng.normal(size=(count, 2))
        speed = np.exp(0.4 * rng.normal(size=(count, 2)) - crossing * quality)
        grown = 1 - np.exp(-3 * speed[:, None] * times[:, None])
        scores = (0.5 + 0.15 * quality)[:, None] * grown + noise * rng.normal(size=(count, 3, 2))
        return Curves(times * 9000, np.clip(scores, 0.0, 1.0))

    return draw


# ---- table


def rows(make: Callable[[int], Curves], seeds: int, factor: float, at_once: int) -> Iterator[tuple[str, list[float]]]:
    """Yield each policy's name with its figures; see the head of this file."""
    drawn = [make(seed) for seed in range(seeds)]
    by_runs = np.mean([_by_runs(curves, seed) / hypervolume(curves.last) for seed, curves in enumerate(drawn)], axis=0)
    for policy in POLICIES:
        found = []
        for seed, curves in enumerate(drawn):
            order = np.random.default_rng([seed, 1]).permutation(len(curves.scores)).tolist()
            spent, ended = replay(curves, policy, factor, order, at_once)
            last, kept = curves.last, curves.last[sorted(ended)]
            short = last.mean(axis=1).max() - kept.mean(axis=1).max()
            found.append((spent / curves.total_images, hypervolume(kept) / hypervolume(last), short))
        share, ratio, short = np.array(found).T
        needed = float(np.interp(ratio.mean(), by_runs, np.linspace(0, 1, len(by_runs))))
        figures = (share.mean(), ratio.mean(), ratio.min(), short.mean(), 1 - share.mean() / needed)
        yield policy.name, [float(value) for value in figures]


_KNOWN: dict[bytes, NDArray[np.float64]] = {}


def _by_runs(curves: Curves, seed: int) -> NDArray[np.float64]:
    key = curves.scores.tobytes()
    if key not in _KNOWN:
        _KNOWN[key] = hypervolume_by_runs(curves.last, np.random.default_rng([seed, 2]))
    return _KNOWN[key]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 3.0], help="reduction factors")
    parser.add_argument("--at-once", type=int, default=4, help="trials at once")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of finished sweeps")
    options = parser.parse_args(arguments)
    sets: dict[str, Callable[[int], Curves]] = {
        "synthetic, speed independent": synthetic(0.0, 0.02),
        "synthetic, the best are slow": synthetic(0.6, 0.02),
        "synthetic, the best are slower": synthetic(1.2, 0.02),
    }
    fixed = recorded() | {str(folder): of_sweep(folder) for folder in options.runs}
    sets |= {name: lambda seed, curves=curves: curves for name, curves in fixed.items()}
    print("| curves | trials | tau | factor | policy | spent | hypervolume | lowest | best falls short | saved |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, make in sets.items():
        drawn = [make(seed) for seed in range(1 if name in fixed else options.seeds)]
        standings = [curves.scores.mean(axis=2) for curves in drawn]
        tau = np.mean([kendall_tau(standing[:, 0], standing[:, -1]) for standing in standings])
        for factor in options.factors:
            for policy, (share, mean, low, short, saved) in rows(make, options.seeds, factor, options.at_once):
                figures = f"{share:.2f} | {mean:.3f} | {low:.3f} | {short:.3f} | {saved:+.0%}"
                print(
                    f"| {name} | {len(drawn[0].scores)} | {tau:.2f} | {factor:g} | {policy} | {figures} |", flush=True
                )


if __name__ == "__main__":
    main()
