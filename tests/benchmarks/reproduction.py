"""Whether our beta-VAE, FactorVAE and beta-TCVAE learn as disentanglement_lib's do: a check that can fail.

    python -m tests.benchmarks.reproduction [--steps 500] [--seeds 0 1] [--methods beta_vae ...] [--controls] [--quick]

disentanglement_lib publishes scores of 300,000 steps only, which take days on a CPU. We therefore ran its own code (the
package disentanglement-lib 1.5: its networks, losses and optimisers, with the settings of its study) for fewer steps on
the same images, with several seeds. `reproduction.json` holds the learning curves of these runs, and the scores of
their codes by our metrics; `tests.benchmarks.reproduction_reference` makes it. Both sides take batches of 64 images of
`dsprites_procedural`. Ours are the presets in `_published`.

A number of ours passes if the mean over our seeds lies in the prediction interval of that many further runs of
disentanglement_lib. The interval is that of Student's t, from the deviation between its seeds, pooled over the methods;
for losses, on a logarithmic scale. All intervals together hold with LEVEL if ours are the same methods, because each is
widened for the number of comparisons. The intervals are printed before our first run starts. The exit code is 1 if a
number lies outside.

`--controls` adds runs that must lie outside: beta-VAE with a learning rate of twice the published one, and encoders
that were not trained. `--quick` tries the command on few images and steps, and compares nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

from raydis.config import RunConfig
from raydis.config.files import merge
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.engine.evaluate import encode_images
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scoring import score
from raydis.metrics.subgrid import search_subgrid

REFERENCE = Path(__file__).with_suffix(".json")
METHODS = ("beta_vae", "beta_tcvae", "factor_vae")
LOSSES = ("reconstruction", "kl")  # nats for each image, means over a window
SCORES = ("factor_vae", "dci_disentanglement", "mig")
WINDOW = 50  # steps
SCORED_IMAGES = 12_000  # at most, of a sub-grid of the factors
LEVEL = 0.95
QUICK: dict[str, dict[str, Any]] = {
    "data": {"levels": {"scale": 2, "orientation": 3, "position_x": 4, "position_y": 4}},
    "train": {"batch_size": 8},
}
Values = Mapping[str, float]  # by "quantity at step"


@dataclass(frozen=True)
class Interval:
    """Where the mean of our runs is expected."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


# ---- both sides


def scored_indices(dataset: FactorDataset) -> NDArray[np.int64]:
    """The images whose codes are scored: a sub-grid that keeps the product of the factors."""
    assert dataset.space is not None
    levels = search_subgrid(dataset.space.sizes, SCORED_IMAGES)
    grid = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, len(levels))
    return dataset.space.index(grid.astype(np.int64))


def scores_of(codes: NDArray[np.floating[Any]], factors: NDArray[np.int64]) -> dict[str, float]:
    """Our metrics of codes (M, N), with one draw of the published sample sizes. Empty if the codes cannot be scored."""
    found = score(codes, factors, protocol=SEARCH, data_fingerprint="reproduction", num_draws=1)
    return {name: found.values[name] for name in SCORES} if found.status == "valid" else {}


def windows(num_steps: int) -> list[int]:
    """The steps at which losses are compared: the ends of the windows at a fifth, at a half and at the end."""
    return sorted({max(round(num_steps * share / WINDOW), 1) * WINDOW for share in (0.2, 0.5, 1.0)})


def named(scores: Mapping[str, float], num_steps: int) -> dict[str, float]:
    return {f"{name} at {num_steps}": value for name, value in scores.items()}


# ---- disentanglement_lib's side


def reference(method: str, num_steps: int) -> list[Values]:
    """The values of each run of disentanglement_lib's code."""
    if not REFERENCE.exists():
        raise SystemExit(f"no {REFERENCE.name}: make it by tests.benchmarks.reproduction_reference")
    known = json.loads(REFERENCE.read_text())
    if str(num_steps) not in known["scored_steps"]:
        raise SystemExit(
            f"{REFERENCE.name} has no scores after {num_steps} steps: choose --steps from "
            f"{', '.join(known['scored_steps'])}, or make it anew for more steps by "
            "tests.benchmarks.reproduction_reference"
        )
    found: list[Values] = []
    for run in known["runs"]:
        if run["method"] == method:
            losses = {
                f"{name} at {step}": run[name][step // WINDOW - 1] for name in LOSSES for step in windows(num_steps)
            }
            found.append(losses | named(run["scores"][str(num_steps)], num_steps))
    return found


def on_scale(name: str, value: float) -> float:
    return math.log(value) if name.split()[0] in LOSSES else value


def off_scale(name: str, value: float) -> float:
    return math.exp(value) if name.split()[0] in LOSSES else value


def intervals(runs: Mapping[str, Sequence[Values]], num_seeds: int) -> dict[str, dict[str, Interval]]:
    """The interval of each number of each method, for the mean of `num_seeds` further runs.

    Args:
        runs: disentanglement_lib's, by method.
    """
    every = [run for each in runs.values() for run in each]
    names = [
        name for name in every[0] if all(name in run for run in every)
    ]  # a run that cannot be scored has no scores
    chance = (1.0 - LEVEL) / (len(names) * len(runs))
    found: dict[str, dict[str, Interval]] = {method: {} for method in runs}
    for name in names:
        values = {method: np.array([on_scale(name, run[name]) for run in each]) for method, each in runs.items()}
        freedom = sum(len(each) - 1 for each in values.values())
        variance = sum(float(((each - each.mean()) ** 2).sum()) for each in values.values()) / freedom
        quantile = float(scipy.stats.t.ppf(1.0 - chance / 2.0, freedom))
        for method, each in values.items():
            half = quantile * math.sqrt(variance * (1.0 / len(each) + 1.0 / num_seeds))
            found[method][name] = Interval(*(off_scale(name, each.mean() + side * half) for side in (-1.0, 1.0)))
    return found


# ---- our side


def configure(method: str, seed: int, *, quick: bool, learning_rate: float | None = None) -> RunConfig:
    """A published preset on dSprites."""
    tree: dict[str, Any] = {"preset": f"{method}_published", "seed": seed}
    tree |= {"data": {"name": "dsprites_procedural", "levels": {}}, "train": {}}
    if quick:
        tree = merge(tree, QUICK)
    if learning_rate is not None:
        tree["train"]["learning_rate"] = learning_rate
    return RunConfig.model_validate(expand(tree))


def train(config: RunConfig, dataset: FactorDataset, num_steps: int) -> tuple[Values, float]:
    """Train and score one run. Return its values and the training images a CPU-second."""
    training = Training(config, dataset, device=torch.device("cpu"))
    step, rows, total = Step(training), list[dict[str, float]](), dict.fromkeys(LOSSES, 0.0)
    started = time.process_time()
    for number in range(1, num_steps + 1):
        losses = step()
        total = {name: total[name] + float(losses[name]) for name in LOSSES}
        if number % WINDOW == 0:
            rows.append({name: value / WINDOW for name, value in total.items()})
            total = dict.fromkeys(LOSSES, 0.0)
    speed = num_steps * config.train.batch_size / (time.process_time() - started)
    values = {f"{name} at {step}": rows[step // WINDOW - 1][name] for name in LOSSES for step in windows(num_steps)}
    return values | named(scored(training), num_steps), speed


def scored(training: Training) -> dict[str, float]:
    """The scores of the method as it is."""
    indices = scored_indices(training.loader.dataset)
    codes = encode_images(training.method, training.loader, indices)[:, :, 0]
    return scores_of(codes, training.loader.dataset.factors(indices))


def controls(dataset: FactorDataset, num_steps: int) -> Iterator[tuple[str, str, Values]]:
    """Runs that must not pass: name, the method whose intervals apply, values."""
    rate = 2.0 * configure("beta_vae", 0, quick=False).train.learning_rate
    faster = configure("beta_vae", 0, quick=False, learning_rate=rate)
    yield f"beta_vae with learning_rate={rate:g}", "beta_vae", train(faster, dataset, num_steps)[0]
    for method in METHODS:
        fresh = Training(configure(method, 0, quick=False), dataset, device=torch.device("cpu"))
        yield f"{method} without training", method, named(scored(fresh), num_steps)


# ---- the command


def compare(method: str, runs: Sequence[Values], expected: Mapping[str, Interval]) -> int:
    """Print a row for each number. Return how many lie outside. A number that a run does not have counts as outside."""
    outside = 0
    for name in expected:
        mean = float(np.mean([run.get(name, math.nan) for run in runs]))
        passes = expected[name].holds(mean)
        outside += not passes
        each = " ".join(f"{run[name]:.4g}" if name in run else "no score" for run in runs)
        wanted = f"{expected[name].low:.4g} to {expected[name].high:.4g}"
        shown, verdict = "" if math.isnan(mean) else f"{mean:.4g}", "pass" if passes else "FAIL"
        print(f"{method:<32} {name:<28} {wanted:>20} {shown:>9}  ({each})  {verdict}", flush=True)
    return outside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="training steps of every run, a multiple of 50")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--controls", action="store_true", help="also train what must not pass")
    parser.add_argument("--quick", action="store_true", help="50 steps on few images, compared with nothing")
    options = parser.parse_args()
    num_steps = WINDOW if options.quick else options.steps
    seeds = options.seeds[:1] if options.quick else options.seeds
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, seeds {seeds}")
    expected: dict[str, dict[str, Interval]] = {}
    if not options.quick:
        expected = intervals({method: reference(method, num_steps) for method in METHODS}, len(seeds))
        for method in options.methods:
            for name, interval in expected[method].items():
                print(f"expected: {method:<12} {name:<28} {interval.low:10.4g} to {interval.high:10.4g}", flush=True)
    dataset = open_dataset(configure(METHODS[0], 0, quick=options.quick).data)
    outside = 0
    for method in options.methods:
        runs: list[Values] = []
        for seed in seeds:
            values, speed = train(configure(method, seed, quick=options.quick), dataset, num_steps)
            runs.append(values)
            print(f"{method}, seed {seed}: {speed:.0f} images a CPU-second, {json.dumps(values)}", flush=True)
        if expected:
            outside += compare(method, runs, expected[method])
    if not expected:
        print("nothing was compared: leave out --quick")
        return 0
    print(f"{outside} numbers outside of their intervals")
    for name, method, values in controls(dataset, num_steps) if options.controls else ():
        caught = compare(
            name,
            [values],
            {each: where for each, where in expected[method].items() if each in values or each.split()[0] in SCORES},
        )
        print(f"control {name}: {f'caught by {caught} numbers' if caught else 'NOT CAUGHT'}", flush=True)
        outside += not caught
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
