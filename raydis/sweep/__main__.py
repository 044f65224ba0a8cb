"""The command `python -m raydis.sweep [SPEC]`, which runs a sweep and publishes its best trial.

Slow imports are inside the functions, so that `--help` and errors in the arguments appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydis.edge import EXIT_CODE_HELP, run_command
from raydis.errors import INTERRUPTED, ConfigError, StoreError, SweepError

if TYPE_CHECKING:
    from rich.console import Console

    from raydis.sweep.spec import SweepSpec

QUICKSTART = Path("sweeps", "quickstart.yaml")
WIDTH = 100  # columns of the output if it is not a terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=EXIT_CODE_HELP)
def sweep(
    spec: Annotated[Path | None, typer.Argument(help=f"Sweep file; default: {QUICKSTART}.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the sweep file: run.train.num_images=1000. Repeatable.",
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            envvar="RAYDIS_STORAGE", help="Folder or s3://bucket/prefix, not percent-encoded, for sweeps and registry."
        ),
    ] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the name in its file.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin another sweep with a number after its name; continue none.")
    ] = False,
    num_trials: Annotated[int | None, typer.Option(help="Number of sampled trials, without controls.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Most trials at once; default: all that fit.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
) -> None:
    """Search over run settings: train, score and compare trials, then publish the best one in the registry.

    After an interruption, the same command continues: trials that have ended are not repeated, and the others go on
    from their last checkpoints.
    """
    from rich.console import Console

    from raydis.engine.plan import budget_warnings
    from raydis.sweep.plan import print_plan
    from raydis.sweep.spec import load_spec

    if fresh and name is not None:
        raise ConfigError(f"--fresh and --name={name} exclude each other: --fresh chooses a name that is free")
    flags = {"num_trials": num_trials, "max_concurrent": max_concurrent, "seed": seed}
    path = spec or find_quickstart()
    plan = load_spec(
        path, [*(overrides or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    )
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for warning in budget_warnings(plan.run):
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    if dry_run:
        print_plan(plan, path, console)
    else:
        _run(plan, path, name, storage, console, fresh=fresh)


def _run(plan: SweepSpec, path: Path, name: str | None, storage: str, console: Console, *, fresh: bool) -> None:
    """Run what is left of a sweep and print its result. Raises what the exit code says."""
    from raydis.cluster.storage import lasting_storage
    from raydis.store import open_store
    from raydis.sweep.folder import default_name
    from raydis.sweep.printout import print_result
    from raydis.sweep.run import run_sweep

    storage = lasting_storage(storage)
    name = name or default_name(open_store(storage), plan, fresh=fresh)
    console.print(f"sweep {name}: {plan.total_trials} trials of {path}", highlight=False, soft_wrap=True)
    result = run_sweep(plan, name=name, storage=storage, console=console)
    print_result(result, plan, storage, console)
    if result.unwritten is not None:
        raise StoreError(
            f"{result.unwritten}. The results so far are printed above; the same command goes on from them"
        )
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if result.unpublished is not None:
        raise SweepError(
            f"the best trial was not published: {result.unpublished}. The command that registers it is printed above"
        )


def find_quickstart() -> Path:
    """Return the path of sweeps/quickstart.yaml in the working directory, else in the checkout of this package."""
    beside = Path(__file__).resolve().parents[2] / QUICKSTART
    for path in (QUICKSTART, beside):
        if path.is_file():
            return path
    raise ConfigError(f"no {QUICKSTART} in {Path.cwd()} nor in {beside.parents[1]}: give a sweep file")


def main() -> None:
    """Run the command `python -m raydis.sweep`."""
    run_command(app)


if __name__ == "__main__":
    main()
