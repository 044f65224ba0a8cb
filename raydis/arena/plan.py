"""Print the plan of an arena without starting it, with the time that it will take. This file imports no framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raydis.arena.folder import Sweeps
from raydis.arena.spec import ArenaSpec
from raydis.metrics.protocol import PUBLISHED
from raydis.metrics.standing import describe
from raydis.sweep.words import duration, print_facts


def print_plan(spec: ArenaSpec, path: Path, console: Console, done: Mapping[str, tuple[Sweeps, Sweeps]]) -> None:
    """Print what an arena would do.

    Args:
        done: what the study and the final of each entrant have done so far, by entrant.
    """
    first = next(iter(spec.entrants.values())).run
    trials = {name: spec.study(name).total_trials for name in spec.entrants}
    num_runs = sum(trials.values()) + len(spec.entrants) * len(spec.seeds)
    print_facts(
        console,
        {
            "arena": f"{spec.name} ({path})",
            "data": f"{first.data.name}, {first.data.image_size} px",
            "a run": f"{spec.num_images} images",
            "studies": f"{spec.num_trials} trials each by {spec.sampler}, seed {spec.seed}, the first as configured; "
            f"{first.evaluation.protocol} protocol",
            "best": describe(spec.objectives),
            "finals": f"seeds {', '.join(map(str, spec.seeds))}; published protocol, estimator "
            f"{spec.estimator or PUBLISHED.estimator}, draws of their own",
            "tests": "all pairs" if spec.focus is None else f"{spec.title(spec.focus)} against each other entrant",
            "in all": f"{num_runs} runs, {num_runs * spec.num_images} images",
            "estimate": estimate(spec),
        },
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("entrant", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for heading in ("study", "final", "a run"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("searches over")
    for name, entrant in spec.entrants.items():
        study, final = done[name]
        searched = ", ".join(key.rpartition(".")[2] for key in spec.study(name).search)
        table.add_row(
            name,
            entrant.run.method.kind,
            "done" if study.summary is not None else str(trials[name]),
            f"{len(final.rows)} of {len(spec.seeds)} done" if final.rows else str(len(spec.seeds)),
            duration(run_s(spec, name)),
            searched or "nothing",
        )
    console.print(table)


def run_s(spec: ArenaSpec, name: str) -> float | None:
    """Return how long one run of an entrant takes by the speed in the file, in seconds; None if it has none."""
    speed = spec.entrants[name].speed
    return None if speed is None else spec.entrants[name].run.train.num_images / speed.images_per_s + speed.fixed_s


def estimate(spec: ArenaSpec, num_cpus: int | None = None) -> str:
    """Return how long the arena takes from its beginning, as text.

    A study and a final run as many runs at once as `num_cpus` CPUs, by default those of this machine, or
    `max_concurrent` allow. The number of GPUs is not known here: a run that uses some is counted as if alone.
    """
    total_s, gpu_s = 0.0, 0.0
    for name, entrant in spec.entrants.items():
        each_s = run_s(spec, name)
        if each_s is None:
            return f"unknown: entrants.{name}.speed is not given"
        compute = entrant.run.compute
        on_gpu = compute.num_gpus > 0 or compute.device == "cuda"
        at_once = max(1, int((num_cpus or os.cpu_count() or 1) // (compute.num_cpus * compute.num_workers)))
        at_once = 1 if on_gpu else min(at_once, spec.max_concurrent or at_once)
        rounds = sum(-(-count // at_once) for count in (spec.study(name).total_trials, len(spec.seeds)))
        total_s += rounds * each_s
        if entrant.pretraining is not None and entrant.speed is not None:
            total_s += entrant.pretraining.run.train.num_images / entrant.speed.images_per_s
        if on_gpu:
            num_runs = spec.study(name).total_trials + len(spec.seeds)
            gpu_s += num_runs * each_s * max(compute.num_gpus, 1.0) * compute.num_workers
    gpus = f"; {gpu_s / 3600:.1f} GPU-hours, here one after the other" if gpu_s else ""
    return f"{duration(total_s)} on {num_cpus or os.cpu_count()} CPUs, by the speeds in the file{gpus}"
