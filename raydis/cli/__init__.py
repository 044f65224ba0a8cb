"""The command line `python -m raydis VERB`: train a run, draw pictures from a checkpoint, manage the registry, and
look at sweeps.

Heavy imports are inside the functions, so that `--help` and errors in options answer quickly.
"""

from __future__ import annotations

import typer

from raydis.cli import pictures, registry, runs, sweeps
from raydis.cli.evaluate import evaluate
from raydis.edge import EXIT_CODE_HELP, run_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, score, inspect and publish disentangled models. `python -m raydis.sweep` runs a sweep.",
    epilog=EXIT_CODE_HELP,
)
for verb in (runs.train, evaluate, pictures.traverse, pictures.swap, pictures.image, pictures.report):
    app.command()(verb)
app.add_typer(registry.app, name="models")
app.add_typer(sweeps.app, name="sweeps")


def main() -> None:
    """Run the command line."""
    run_command(app)
