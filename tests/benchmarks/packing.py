"""Several runs on one device at once: the sum of images a second of 1, 2, 4 and 8 processes, each training a preset.

    python -m tests.benchmarks.packing [--device cpu|cuda] [--preset small] [--counts 1 2 4 8] [--seconds 10]
    python -m tests.benchmarks.packing --batched [--counts 2 4]

Every process builds its own run and takes its first steps; then all start together and train for the given time of the
clock. A GPU's default of `compute.num_gpus` follows from the best count. `--batched` compares, in one process, K
separate training steps with one step of K stacked networks under torch.vmap (HFTA's idea, arXiv 2102.02344).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import queue
import statistics
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from raydis.engine.breakdown import seconds
from raydis.engine.state import Training
from raydis.engine.step import Step, next_batch
from tests.benchmarks.train_step import make_config, make_dataset

SEED = 0
START_S = 240  # for all processes to import, build and take their first steps
WARMUP_STEPS = 6


def train_for(preset: str, device: str, duration_s: float, compile: str, barrier: Barrier, results: Any) -> None:
    """One process: warm up, wait for the others, train; sends images a second of the clock."""
    torch.set_num_threads(1)
    config = make_config(preset, device, 1, compile=compile)
    training = Training(config, make_dataset(config.data.image_size), device=torch.device(device))
    step = Step(training)
    for _ in range(WARMUP_STEPS):
        step()
    synchronise(device)
    barrier.wait(START_S)
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < duration_s:
        for _ in range(5):
            step()
        synchronise(device)  # or the host would run ahead of the clock
        steps += 5
    results.put(steps * config.train.batch_size / (time.perf_counter() - began))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def pack(preset: str, device: str, count: int, duration_s: float, compile: str) -> dict:
    """Train `count` runs at once; the row of the table.

    Raises:
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    arguments = (preset, device, duration_s, compile, barrier, results)
    processes = [context.Process(target=train_for, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        rates = [results.get(timeout=START_S + 2 * duration_s + 60) for _ in processes]
    except queue.Empty as error:
        codes = [process.exitcode for process in processes]
        raise RuntimeError(f"not all of {count} processes answered; their exit codes are {codes}") from error
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return {
        "preset": preset,
        "processes": count,
        "compile": compile,
        "images_per_s": round(sum(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
    }


def race_batched(preset: str, device: str, num_networks: int, rounds: int) -> dict:
    """Gradients of K networks: one after the other, and stacked under vmap. No optimiser: it is the same for both."""
    config = make_config(preset, device, 1)
    where = torch.device(device)
    trainings = [Training(config, make_dataset(config.data.image_size), device=where) for _ in range(num_networks)]
    networks: list[nn.Module] = [training.method for training in trainings]
    for index, network in enumerate(networks):
        torch.manual_seed(index)
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.02)
        network.train()
    batch = next_batch(trainings[0])
    (move,) = trainings[0].method.moves
    parameters, buffers = stack_module_state(networks)
    constant = {name: buffer[0] for name, buffer in buffers.items()}

    def loss(weights: dict, stack: dict) -> torch.Tensor:
        return functional_call(networks[0], (weights, stack), (batch, move.name))["loss"]

    def stacked() -> None:
        vmap(grad(loss), in_dims=(0, None), randomness="different")(parameters, constant)

    def separate() -> None:
        for network in networks:
            network.zero_grad(set_to_none=True)
            network(batch, move.name)["loss"].backward()

    ratios = []
    for number in range(rounds + 1):
        times = [seconds(call, where) for call in (separate, stacked)]
        if number:
            ratios.append(times[0] / times[1])
    return {
        "preset": preset,
        "networks": num_networks,
        "separate_over_stacked": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def rows_of(options: argparse.Namespace) -> Iterator[dict]:
    for count in options.counts:
        if options.batched:
            yield race_batched(options.preset, options.device, count, options.rounds)
        else:
            yield pack(options.preset, options.device, count, options.seconds, options.compile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", "small", "reference"), default="small")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--compile", choices=("off", "blocks", "graph", "full"), default="off")
    parser.add_argument("--batched", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="of --batched")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"{machine}, torch {torch.__version__}, seed {SEED}")
    rows = []
    for row in rows_of(options):
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"benchmark": "packing", "torch": torch.__version__, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
