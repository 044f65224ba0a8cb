"""`python -m raydis.sweep`: search, score, promote."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import raydis
from raydis.errors import ConfigError, RaydisError
from raydis.sweep.spec import SweepSpec, load_spec

QUICKSTART = Path("sweeps", "quickstart.yaml")
WIDTH = 100
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    spec: Annotated[Path | None, typer.Argument(help=f"Sweep file; default: {QUICKSTART}.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file, e.g. "
                     "run.train.num_images=1000. Repeatable."),
    ] = None,
    storage: Annotated[str, typer.Option(help="Folder or s3://bucket/prefix for sweeps and the registry.")] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the file's and the time.")] = None,
    num_trials: Annotated[int | None, typer.Option(help="Trials to sample; controls come on top.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at once; default: what the cluster holds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
) -> None:
    """Search over run settings: train, score and compare trials, then publish the best in the registry."""
    flags = {"num_trials": num_trials, "max_concurrent": max_concurrent, "seed": seed}
    assignments = [*(overrides or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    path = spec or find_quickstart()
    plan = load_spec(path, assignments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, soft_wrap=False)
    if dry_run:
        print_plan(plan, path, console)
        return
    from raydis.sweep.run import default_name, run_sweep

    sweep = name or default_name(plan)
    console.print(f"sweep {sweep}: {plan.total_trials} trials of {path}", highlight=False)
    result = run_sweep(plan, name=sweep, storage=storage, console=console)
    print_result(result, plan, storage, console)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
