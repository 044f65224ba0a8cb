"""What refits and following anchors cost beside training: the share of a run's time.

    python -m tests.benchmarks.refit [--preset small|reference|both] [--device cpu|cuda]

Times some training steps with the anchors fitted, the part of them in which means follow tokens, and refits: the first,
which draws seeds, and later ones, which go on from the last. The share is that of one later refit in the steps between
two, as the preset sets them. On a CPU, CPU-seconds of one thread, and the reference preset steps with batches of 4.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.methods.dyga_sd import DygaSd
from tests.benchmarks.train_step import make_dataset

ROUNDS = 3
STEPS = {"small": 8, "reference": 2}
CPU_REFERENCE_BATCH_SIZE = 4


def seconds(call: Callable[[], object], device: str) -> float:
    """Of one call: CPU-seconds, or on a GPU seconds until it has finished."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(preset: str, device: str) -> dict[str, float | int | str]:
    """One row of the table."""
    batch = {"batch_size": CPU_REFERENCE_BATCH_SIZE} if (preset, device) == ("reference", "cpu") else {}
    config = RunConfig.model_validate(expand({"preset": preset, "train": batch}))
    training = Training(config, make_dataset(config.data.image_size), device=torch.device(device))
    method = training.method
    assert isinstance(method, DygaSd)
    first = seconds(training.refit, device)
    later = [seconds(training.refit, device) for _ in range(ROUNDS)]

    step = Step(training)

    def steps() -> None:
        for _ in range(STEPS[preset]):
            step()

    steps()
    step_s = statistics.median(seconds(steps, device) for _ in range(ROUNDS)) / STEPS[preset]
    track = statistics.median(seconds(method.anchors.track, device) for _ in range(ROUNDS))
    num_steps = config.method.anchors.refit_images / config.train.batch_size
    return {
        "preset": preset,
        "refit_images": config.method.anchors.refit_images,
        "fit_samples": min(config.method.anchors.fit_samples, len(training.dataset)),
        "step_s": round(step_s, 4),
        "track_s": round(track, 5),
        "first_refit_s": round(first, 3),
        "later_refit_s": round(statistics.median(later), 3),
        "share": round(statistics.median(later) / (num_steps * step_s), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("small", "reference", "both"), default="both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, 1 thread"
    print(f"torch {torch.__version__}, {machine}")
    print(f"{'preset':10} {'step s':>9} {'following s':>12} {'first refit s':>14} {'later refit s':>14} {'share':>8}")
    rows = []
    for preset in ("small", "reference") if options.preset == "both" else (options.preset,):
        row = measure(preset, options.device)
        rows.append(row)
        print(
            f"{preset:10} {row['step_s']:9} {row['track_s']:12} {row['first_refit_s']:14} {row['later_refit_s']:14} "
            f"{100 * float(row['share']):7.2f}%"
        )
    print(json.dumps({"benchmark": "refit", "torch": torch.__version__, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
