"""The commands `sweeps VERB`: list and show the sweeps of a storage, also while they run, and rebuild their tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydis.cli.options import Storage

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns of the output if it is not a terminal

app = typer.Typer(
    no_args_is_help=True,
    help="Look at sweeps, also while they run and from another machine. `python -m raydis.sweep` runs one.",
)
SweepName = Annotated[str, typer.Argument(help="Name of the sweep: that of its folder below `sweeps`.")]


@app.command("list")
def list_sweeps(storage: Storage = "runs") -> None:
    """List every sweep with its state, its trials and its best scores."""
    from raydis.errors import ConfigError
    from raydis.store import open_store
    from raydis.sweep.printout import sweeps_table
    from raydis.sweep.read import read_sweep, running_sweeps, sweep_names

    store, found, unread = open_store(storage), [], []
    names = sweep_names(store)
    running = running_sweeps(store, names)
    for name in names:
        try:
            found.append(read_sweep(store, name, running=name in running))
        except ConfigError as error:
            unread.append(str(error))
    if found:
        _console().print(sweeps_table(found))
    for line in unread:
        typer.echo(line)
    if not names:
        typer.echo(f"no sweeps in {storage}; `python -m raydis.sweep` runs one")


@app.command("show")
def show_sweep(name: SweepName, storage: Storage = "runs") -> None:
    """Print the trials of a sweep and its best one, as the sweep does at its end."""
    from raydis.store import open_store
    from raydis.sweep.files import SUMMARY_FILE
    from raydis.sweep.folder import sweep_key
    from raydis.sweep.printout import print_result
    from raydis.sweep.read import read_sweep, running_sweeps

    store = open_store(storage)
    sweep = read_sweep(store, name, running=bool(running_sweeps(store, [name])))
    tables = not sweep.running and store.exists(f"{sweep_key(name)}/{SUMMARY_FILE}")
    print_result(sweep.result, sweep.spec, storage, _console(), running=sweep.running, tables=tables)


@app.command("rebuild")
def rebuild_sweep(
    name: SweepName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the tables; default: that of the sweep, which must not run."),
    ] = None,
    storage: Storage = "runs",
) -> None:
    """Write trials.csv, trials.parquet and summary.json anew from the study of a sweep."""
    from raydis.store import LocalStore, open_store
    from raydis.sweep.read import read_sweep, rebuild, running_sweeps, write_tables_of

    store = open_store(storage)
    if output is None:
        result = rebuild(store, name)
        folder = result.folder
    else:
        folder = output.resolve()
        result = read_sweep(store, name, running=bool(running_sweeps(store, [name]))).result
        write_tables_of(result, LocalStore(folder.parent), folder.name)
    typer.echo(f"trials.csv, trials.parquet and summary.json of {len(result.records)} trials are in {folder}")


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)
