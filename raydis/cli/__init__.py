"""`python -m raydis VERB`: train one run, look at a checkpoint, keep the registry. Heavy imports wait for a verb."""

from __future__ import annotations

import typer

from raydis.cli import pictures, registry, runs
from raydis.edge import EXIT_CODE_HELP, run_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, look at and publish disentangled diffusion models. A sweep is `python -m raydis.sweep`.",
    epilog=EXIT_CODE_HELP,
)
for verb in (runs.train, pictures.traverse, pictures.swap, pictures.image, pictures.report):
    app.command()(verb)
app.add_typer(registry.app, name="models")


def main() -> None:
    """Entry point of `python -m raydis`."""
    run_command(app)
