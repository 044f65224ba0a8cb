"""The command `python -m raydis.arena SPEC`, which compares methods at equal budget and writes one report.

Slow imports are inside the functions, so that `--help` and errors in the arguments appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydis.edge import EXIT_CODE_HELP, run_command
from raydis.errors import INTERRUPTED, ConfigError, SweepError

if TYPE_CHECKING:
    from rich.console import Console

    from raydis.arena.spec import ArenaSpec

WIDTH = 100  # columns of the output if it is not a terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=EXIT_CODE_HELP)
def arena(
    spec: Annotated[Path, typer.Argument(help="Arena file, such as sweeps/arena_quick.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the arena file: run.train.num_images=1000, entrants.NAME=null. Repeatable.",
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(envvar="RAYDIS_STORAGE", help="Folder or s3://bucket/prefix, not percent-encoded."),
    ] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the arena; default: the one in its file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
) -> None:
    """Compare methods: a study of each with the same budget, then its best setting with fresh seeds, then a report.

    After an interruption, the same command continues: studies and final runs that have ended are not repeated.
    """
    from rich.console import Console

    from raydis.arena.spec import load_arena
    from raydis.engine.plan import budget_warnings
    from raydis.sweep.spec import NAME

    plan = load_arena(spec, overrides or [])
    name = name or plan.name
    import re

    if not re.fullmatch(NAME, name):
        raise ConfigError(f"arena name {name[:80]!r} is not allowed: up to 64 letters, digits, '.', '_' and '-'")
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for entrant in plan.entrants:
        for warning in budget_warnings(plan.study(entrant).run):
            console.print(f"warning: {entrant}: {warning}", highlight=False, markup=False, soft_wrap=True)
    if dry_run:
        _print_plan(plan, spec, name, storage, console)
        return
    from raydis.arena.printout import print_result
    from raydis.arena.run import run_arena
    from raydis.cluster.storage import lasting_storage

    storage = lasting_storage(storage)
    console.print(
        f"arena {name}: {len(plan.entrants)} entrants of {spec}", highlight=False, markup=False, soft_wrap=True
    )
    command = ["python", "-m", "raydis.arena", *sys.argv[1:]]
    result = run_arena(plan, name=name, storage=storage, console=console, command=command)
    print_result(result, plan, command, console)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not any(entry.scored() for entry in result.entries):
        raise SweepError(f"no entrant has a final run with valid scores: the reasons stand in {result.folder}")


def _print_plan(plan: ArenaSpec, path: Path, name: str, storage: str, console: Console) -> None:
    from raydis.arena.folder import arena_key, read_sweeps
    from raydis.arena.plan import print_plan
    from raydis.store import open_store

    store, key = open_store(storage), arena_key(name)
    done = {
        each: (read_sweeps(store, key, each, "study"), read_sweeps(store, key, each, "final")) for each in plan.entrants
    }
    print_plan(plan, path, console, done)


def main() -> None:
    """Run the command `python -m raydis.arena`."""
    run_command(app)


if __name__ == "__main__":
    main()
