"""What more CPUs a run bring: training steps by torch's threads, and DCI by its processes, in seconds of the clock.

    python -m tests.benchmarks.threads [--counts 1 2] [--steps 8] [--rounds 5] [--quick]

These are what `compute.num_cpus` sets. The counts alternate within every round, and a row is the median over the
rounds; the last column is how much faster it is than one CPU. Run it on an idle machine: threads that share a core
with another process wait for it, and the result then says more about that process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from raydis.engine.device import use_threads
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.metrics.dci import dci
from raydis.metrics.importance import Estimator
from tests.benchmarks.train_step import make_config, make_dataset

SEED = 0
FACTOR_SIZES = (4, 4, 4, 2, 4, 3)  # of the small preset's images
NUM_UNITS = 12
NUM_CODES = 10_000


def clock(call: Callable[[], object]) -> float:
    """Seconds of the clock that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def medians(measure: Callable[[int], float], counts: Sequence[int], num_rounds: int) -> dict[int, float]:
    """Median seconds by count; the counts alternate, so that a drift of the machine's speed meets all of them."""
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(num_rounds):
        for count in counts:
            taken[count].append(measure(count))
    return {count: statistics.median(seconds) for count, seconds in taken.items()}


def time_training(preset: str, batch_size: int, num_steps: int) -> Callable[[int], float]:
    """Seconds a step of one run, by threads."""
    config = make_config(preset, "cpu", num_steps, batch_size=batch_size)
    training = Training(config, make_dataset(config.data.image_size), device=torch.device("cpu"))
    step = Step(training)
    step()

    def steps() -> None:
        for _ in range(num_steps):
            step()

    def measure(count: int) -> float:
        use_threads(count)
        return clock(steps) / num_steps

    return measure


def time_dci(estimator: Estimator, num_train: int) -> Callable[[int], float]:
    """Seconds of DCI of noisy codes, by processes; starting them is a part of it."""
    rng = np.random.default_rng(SEED)
    factors = np.stack([rng.integers(size, size=NUM_CODES) for size in FACTOR_SIZES], axis=1)
    mixed = factors @ rng.normal(size=(len(FACTOR_SIZES), NUM_UNITS))
    codes = mixed + rng.normal(size=mixed.shape)

    def measure(count: int) -> float:
        draws = np.random.default_rng(SEED)
        sizes = {"num_train": num_train, "num_test": num_train // 2}
        return clock(lambda: dci(codes, factors, rng=draws, estimator=estimator, num_jobs=count, **sizes))

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=sorted({1, 2, len(os.sched_getaffinity(0))}))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="One round of everything in its smallest form.")
    options = parser.parse_args()
    num_steps, num_rounds = (1, 1) if options.quick else (options.steps, options.rounds)
    num_train = 500 if options.quick else 10_000
    measures = {
        "training step, small preset, batch 32": time_training("small", 32, num_steps),
        "training step, small preset, batch 128": time_training("small", 128, num_steps),
        "training step, reference preset, batch 4": time_training("reference", 4, max(1, num_steps // 4)),
        "DCI, hist": time_dci("hist", num_train),
        "DCI, reference": time_dci("reference", num_train),
    }
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    print(f"{'':44}{'CPUs':>6}{'seconds':>11}{'times as fast':>16}")
    rows = []
    for name, measure in measures.items():
        rounds = min(num_rounds, 3) if name == "DCI, reference" else num_rounds
        found = medians(measure, options.counts, rounds)
        for count, seconds in found.items():
            ratio = found[options.counts[0]] / seconds
            print(f"{name:44}{count:6}{seconds:11.4f}{ratio:16.2f}", flush=True)
            rows.append({"what": name, "cpus": count, "seconds": seconds, "times_as_fast": ratio})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
