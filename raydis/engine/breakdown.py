"""Measure how long the parts of a training step take, and predict how long it takes on this machine at least.

The predictions come from the counted work of a step and the peak rates of the device, measured in the same call:

- The number of floating-point operations, divided by the rate of a large matrix product, is a lower bound of any step.
- The number of operations, times the duration of a tiny one, is a lower bound of a step that launches each of them.
- The number of bytes, divided by the rate of a large copy, estimates a step without fused operations and caches.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from raydis.engine.accelerate import WARMUP_CALLS
from raydis.engine.counters import FlopCounter, OpCounter
from raydis.engine.state import Training
from raydis.engine.step import Step, ema_update, make_moves, next_batch

PHASES = ("data", "forward", "backward", "optimiser")  # the last includes clipping, hooks and the moving average
MIN_STEPS = 3
REPEATS = 5  # measurements of each peak rate, of which the best counts
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
NUM_TINY_OPS = 1000


@dataclass(frozen=True)
class Ceilings:
    """The measured peak rates of a device."""

    flops_per_s: float  # of a square matrix product in the run's precision; for fp32 on a GPU, in TF32
    bytes_per_s: float  # of a copy, counting bytes read and bytes written
    op_s: float  # seconds of an operation on one number, which are those of its launch


@dataclass(frozen=True)
class Phase:
    """One part of a step."""

    seconds: float  # median
    num_ops: int  # operations that start work on the device, without views
    num_flops: int  # of matrix products and convolutions; a multiply-add counts as two
    num_bytes: int  # read and written by all operations, if none are fused and nothing stays in a cache


@dataclass(frozen=True)
class Breakdown:
    """The measurements of a training step: its phases, and the time `step_s` of a whole step, launched by `mode`."""

    batch_size: int
    precision: str
    device: str
    mode: str
    phases: dict[str, Phase]
    step_s: float
    ceilings: Ceilings

    @property
    def num_flops(self) -> int:
        return sum(phase.num_flops for phase in self.phases.values())

    @property
    def flops_per_s(self) -> float:
        return self.num_flops / self.step_s

    @property
    def floors(self) -> dict[str, float]:
        """Predicted seconds of a step, by the name of the bound. A bound that does not hold for the mode is left out.

        Compiled blocks and graphs launch fewer operations than we count, and compiled blocks fuse them.
        """
        phases, ceilings = self.phases.values(), self.ceilings
        floors = {"matrix products": self.num_flops / ceilings.flops_per_s}
        if self.mode in ("off", "graph"):
            floors["bytes, were none cached"] = sum(phase.num_bytes for phase in phases) / ceilings.bytes_per_s
        if self.mode == "off":
            floors["launches"] = sum(phase.num_ops for phase in phases) * ceilings.op_s
        return floors


def take_apart(training: Training, *, num_steps: int = 10, limit_s: float = math.inf) -> Breakdown:
    """Time the next steps of a training, first phase by phase and then as a whole. They change its weights.

    CUDA time is that of the device between events. CPU time is that of this process, so other programs do not count.

    Args:
        training: the training, which goes on by as many steps as are timed.
        num_steps: largest number of steps that are timed phase by phase; as many whole steps follow.
        limit_s: wall-clock seconds. Timing by phases stops after half of them, but not before MIN_STEPS steps.
    """
    for _ in range(WARMUP_CALLS):
        _phased_step(training, lambda name: None)
    timed, ends = [], time.perf_counter() + limit_s / 2
    while len(timed) < num_steps and (len(timed) < MIN_STEPS or time.perf_counter() < ends):
        timed.append(_timed_step(training))
    num_steps = len(timed)  # a whole step takes no longer than its phases
    phases = {name: replace(part, seconds=statistics.median(t[name] for t in timed)) for name, part in _work(training)}
    step, device = Step(training), training.device
    for _ in range(WARMUP_CALLS + 1):  # a graph is captured after these
        step()

    def run() -> None:
        for _ in range(num_steps):
            step()

    return Breakdown(
        batch_size=training.loader.local_batch_size,
        precision=training.config.train.precision,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread",
        mode=training.mode,
        phases=phases,
        step_s=seconds(run, device) / num_steps,
        ceilings=measure_ceilings(device, training.config.train.precision),
    )


def measure_ceilings(device: torch.device, precision: str) -> Ceilings:
    """Measure the peak rates of a device, which takes a second or two."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = MATRIX_SIZE[device.type]
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    source = torch.zeros(COPY_BYTES[device.type] // 4, device=device)
    target, number = torch.empty_like(source), torch.zeros(1, device=device)

    def tiny() -> None:
        for _ in range(NUM_TINY_OPS):
            number.add_(1.0)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(seconds(call, device) for _ in range(REPEATS))

    asked = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which its fp32 convolutions use as well
    try:
        product_s = best(lambda: torch.mm(a, b))
    finally:
        torch.set_float32_matmul_precision(asked)
    return Ceilings(
        flops_per_s=2 * size**3 / product_s,
        bytes_per_s=2 * source.nbytes / best(lambda: target.copy_(source)),
        op_s=best(tiny) / NUM_TINY_OPS,
    )


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call and of the device work that it starts; on a CPU, those of this process."""
    if device.type != "cuda":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def describe(breakdown: Breakdown) -> str:
    """Return the breakdown as a table for the terminal."""
    phases, ceilings = breakdown.phases, breakdown.ceilings
    total = sum(phase.seconds for phase in phases.values())
    lines = [
        f"one step: {breakdown.batch_size} images, {breakdown.precision}, {breakdown.device}",
        f"{'phase':24}{'ms':>10}{'%':>7}{'operations':>12}{'GFLOP':>10}{'GB':>9}",
    ]
    for name, phase in phases.items():
        lines.append(
            f"{name:24}{1e3 * phase.seconds:10.3f}{100 * phase.seconds / total:7.1f}{phase.num_ops:12d}"
            f"{phase.num_flops / 1e9:10.2f}{phase.num_bytes / 1e9:9.3f}"
        )
    step_s, floors = breakdown.step_s, breakdown.floors
    lines += [
        f"{'sum of the phases':24}{1e3 * total:10.3f}",
        f"{f'step, compile={breakdown.mode}':24}{1e3 * step_s:10.3f}   {breakdown.batch_size / step_s:,.0f} images/s, "
        f"{breakdown.num_flops / breakdown.batch_size / 1e9:.3f} GFLOP an image",
        f"achieved {breakdown.flops_per_s / 1e9:,.1f} GFLOP/s, "
        f"{100 * breakdown.flops_per_s / ceilings.flops_per_s:.1f} % of "
        f"the {ceilings.flops_per_s / 1e9:,.1f} of a large matrix product here",
        f"a large copy: {ceilings.bytes_per_s / 1e9:,.1f} GB/s; a tiny operation: {1e6 * ceilings.op_s:.1f} us",
        f"predicted floor {1e3 * floors['matrix products']:.3f} ms a step, were all of it matrix products at that "
        f"rate; measured {1e3 * step_s:.3f} ms",
        f"{'bound':24}{'ms':>10}{'step/bound':>12}",
        *(f"{name:24}{1e3 * floor:10.3f}{step_s / floor:12.1f}" for name, floor in floors.items()),
    ]
    return "\n".join(lines)


def _phased_step(training: Training, mark: Callable[[str], None]) -> None:
    """Take a step without its hooks, and call `mark` after each phase of each part."""
    training.method.train()
    batch = next_batch(training)
    mark("data")
    make_moves(training, batch, mark)
    training.step += 1
    ema_update(training)
    mark("optimiser")


def _timed_step(training: Training) -> dict[str, float]:
    """Take a step and return the seconds of each phase."""
    names: list[str] = []
    if training.device.type != "cuda":
        marks = [time.process_time()]

        def mark(name: str) -> None:
            names.append(name)
            marks.append(time.process_time())

        _phased_step(training, mark)
        return _by_phase(names, [after - before for before, after in pairwise(marks)])
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()

    def record(name: str) -> None:
        names.append(name)
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    _phased_step(training, record)
    torch.cuda.synchronize(training.device)
    return _by_phase(names, [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)])


def _by_phase(names: list[str], values: list[Any]) -> dict[str, Any]:
    """Add up the values of each phase."""
    return {phase: sum(value for name, value in zip(names, values, strict=True) if name == phase) for phase in PHASES}


def _work(training: Training) -> list[tuple[str, Phase]]:
    """Take two more steps to count the work of each phase; the seconds of the phases are 0."""
    ops, flops = OpCounter(), FlopCounter()
    counted: list[tuple[str, int, int]] = [("", 0, 0)]
    totals: list[tuple[str, int]] = [("", 0)]
    with torch.compiler.set_stance("force_eager"):
        with ops:
            _phased_step(training, lambda name: counted.append((name, ops.num_ops, ops.num_bytes)))
        # Torch counts matrix products alone, and would miss those within a CPU's fused attention.
        with flops, sdpa_kernel(SDPBackend.MATH):
            _phased_step(training, lambda name: totals.append((name, flops.num_flops)))
    names = [name for name, *_ in counted[1:]]
    num_ops = _by_phase(names, [b[1] - a[1] for a, b in pairwise(counted)])
    num_bytes = _by_phase(names, [b[2] - a[2] for a, b in pairwise(counted)])
    num_flops = _by_phase(names, [b[1] - a[1] for a, b in pairwise(totals)])
    return [(name, Phase(0.0, num_ops[name], num_flops[name], num_bytes[name])) for name in PHASES]
