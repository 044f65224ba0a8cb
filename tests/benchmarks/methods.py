"""Cost of every method: images a CPU-second of a training step, its arithmetic, and the memory that it takes.

    python -m tests.benchmarks.methods [--presets beta_vae_small ...] [--steps 8] [--rounds 3] [--quick]

The methods are the presets for small images (`small` and all that end in `_small`) and every kind of method that has no
such preset, at its defaults on the images of `small`. New methods and presets therefore join by themselves. A method
that is fitted in closed form has no steps: its row tells the images a second of the fit. A method that needs the
checkpoint of another run is named with the reason why it is left out.

Each measurement has a process of its own, with one thread. The methods take turns, and a row is the median over the
rounds. The memory is what the process holds at most (its peak resident size) less what it held before the method was
built, with the data set open. The arithmetic counts matrix products and convolutions of a training step,
a multiply-add as two; it does not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from raydis.config import MethodConfig, RunConfig
from raydis.config.presets import PRESETS, expand
from raydis.data import open_dataset
from raydis.engine.counters import FlopCounter
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.errors import RaydisError

WARMUP_STEPS = 2
MIB = 2**20


def runs() -> dict[str, dict[str, Any]]:
    """The trees of all runs to measure, by name: a preset, or a kind that has no preset for small images."""
    small = [name for name in PRESETS if name == "small" or name.endswith("_small")]
    found: dict[str, dict[str, Any]] = {name: {"preset": name} for name in small}
    shown = {PRESETS[name].method.kind for name in small}
    for config in get_args(get_args(MethodConfig)[0]):
        kind = config.model_fields["kind"].default
        if kind not in shown:
            found[kind] = {"preset": "beta_vae_small", "method": {"kind": kind}}
    return found


def resident(name: str) -> int:
    """The resident size of this process in bytes, now (`VmRSS`) or at most (`VmHWM`), as Linux reports it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def measure(name: str, num_steps: int) -> dict[str, Any]:
    """Measure one run in this process."""
    torch.set_num_threads(1)
    config = RunConfig.model_validate(expand(runs()[name]))
    dataset = open_dataset(config.data)
    before, started = resident("VmRSS"), time.process_time()
    training = Training(config, dataset, device=torch.device("cpu"))
    fit_s = time.process_time() - started
    weights = [weight for move in training.method.moves for weight in move.weights]
    row: dict[str, Any] = {"name": name, "kind": config.method.kind, "batch_size": config.train.batch_size}
    row["parameters"] = sum({id(weight): weight.numel() for weight in weights}.values())
    if training.method.moves:
        step = Step(training)
        for _ in range(WARMUP_STEPS):
            step()
        started = time.process_time()
        for _ in range(num_steps):
            step()
        elapsed = time.process_time() - started
        row["images_per_s"] = num_steps * config.train.batch_size / elapsed
        row["peak_mib"] = (resident("VmHWM") - before) / MIB  # before the operations are counted, which takes memory
        with FlopCounter() as counter:
            step()
        row["gflop_per_image"] = counter.num_flops / config.train.batch_size / 1e9
    else:
        row["images_per_s"] = training.images_seen / fit_s
        row["peak_mib"] = (resident("VmHWM") - before) / MIB
    return row


def measure_apart(name: str, num_steps: int) -> dict[str, Any]:
    """Measure one run in a process of its own."""
    arguments = ["-m", "tests.benchmarks.methods", "--alone", name, "--steps", str(num_steps)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a run: medians over the rounds of what differs between them."""
    numbers = ("images_per_s", "peak_mib")
    return rows[0] | {key: statistics.median(row[key] for row in rows) for key in numbers if key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(runs()), choices=list(runs()), metavar="NAME")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="One step of every method, once.")
    parser.add_argument("--alone", choices=list(runs()), metavar="NAME", help="Measure this one in this process.")
    options = parser.parse_args()
    if options.alone:
        try:
            print(json.dumps(measure(options.alone, options.steps)))
        except RaydisError as error:
            print(json.dumps({"name": options.alone, "left_out": str(error)}))
        return
    num_steps, num_rounds = (1, 1) if options.quick else (options.steps, options.rounds)
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in options.presets}
    for _ in range(num_rounds):
        for name, rows in taken.items():
            rows.append(measure_apart(name, num_steps))
    found = [medians(rows) for rows in taken.values()]
    print(f"{'method':22}{'batch':>6}{'parameters':>12}{'GFLOP/image':>13}{'images/CPU-s':>14}{'MiB':>8}")
    for row in found:
        if "left_out" in row:
            print(f"{row['name']:22}left out: {row['left_out']}")
            continue
        flops = f"{row['gflop_per_image']:.3f}" if "gflop_per_image" in row else "one fit"
        print(
            f"{row['name']:22}{row['batch_size']:6}{row['parameters']:12,}{flops:>13}{row['images_per_s']:14.0f}"
            f"{row['peak_mib']:8.0f}"
        )
    print(json.dumps({"rows": found, "torch": torch.__version__, "machine": f"{platform.machine()}, 1 thread"}))


if __name__ == "__main__":
    main()
