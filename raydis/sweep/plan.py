"""Print the plan of a sweep without starting it. This file imports neither Ray nor torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from raydis.config import ComputeConfig
from raydis.metrics.protocol import PUBLISHED, SEARCH
from raydis.metrics.standing import describe
from raydis.sweep.domains import Choice, Domain
from raydis.sweep.spec import StoppingConfig, SweepSpec
from raydis.sweep.words import brief, print_facts


def print_plan(spec: SweepSpec, path: Path, console: Console) -> None:
    """Print what a sweep would do."""
    run, promotion = spec.run, spec.promotion
    estimator = run.evaluation.estimator or (PUBLISHED if run.evaluation.protocol == "published" else SEARCH).estimator
    names = [f"{control.name}{f' x {n} seeds' if (n := len(control.seeds)) else ''}" for control in spec.controls]
    trials = [f"{spec.num_trials} by {spec.sampler}, seed {spec.seed}"] if spec.num_trials else []
    trials += [f"controls {', '.join(names)}"] if names else []
    steps = -(-run.train.num_images // run.train.batch_size)
    at_once = f"at most {spec.max_concurrent}" if spec.max_concurrent else "as many as the cluster holds"
    print_facts(
        console,
        {
            "sweep": f"{spec.name} ({path})",
            "trials": f"{' + '.join(trials)}; {at_once} at once",
            "objectives": ", ".join(f"{goal.direction} {goal.metric}" for goal in spec.objectives)
            + f" ({run.evaluation.protocol} protocol, estimator {estimator})",
            "data": f"{run.data.name}, {run.data.image_size} px",
            "a trial": f"{run.train.num_images} images in {steps} steps of {run.train.batch_size}",
            "resources": _resources(run.compute),
            **({"stopping": _stopping(spec.stopping, run.evaluation.rungs)} if spec.stopping else {}),
            "in all": f"{spec.total_trials} trials, {spec.total_trials * run.train.num_images} images",
            "promotion": f"{spec.model_name}@{promotion.alias} by {describe(spec.objectives)} "
            f"({promotion.protocol} protocol, estimator {promotion.estimator})"
            if promotion
            else "none",
        },
    )
    if spec.search:
        console.print("search")
        width = max(map(len, spec.search))
        for key, domain in spec.search.items():
            console.print(f"  {key:{width}}  {_range(domain)}", highlight=False, soft_wrap=True)


def _stopping(stopping: StoppingConfig, rungs: tuple[int, ...]) -> str:
    places = ", ".join(map(str, stopping.rungs or rungs))
    return f"about one trial in {stopping.reduction_factor:g} goes on from {places} images"


def _resources(compute: ComputeConfig) -> str:
    gpus = f", {compute.num_gpus:g} GPUs" if compute.num_gpus else ""
    workers = "1 worker" if compute.num_workers == 1 else f"{compute.num_workers} workers"
    return f"{workers} a trial, each {compute.num_cpus:g} CPUs{gpus}, device {compute.device}"


def _range(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return f"one of {', '.join(map(brief, domain.values))}"
    step = f", step {domain.step}" if domain.kind == "int" and domain.step != 1 else ""
    return f"{domain.kind} from {brief(domain.low)} to {brief(domain.high)}{step}{', log' if domain.log else ''}"
