"""The command `evaluate`: score codes from files or checkpoints, and write tables and a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydis.cli.codes import printable, read_inputs
from raydis.cli.options import Storage
from raydis.errors import ConfigError

if TYPE_CHECKING:
    from raydis.evaluation.draws import Progress
    from raydis.evaluation.result import Evaluation


Sources = Annotated[
    list[str],
    typer.Argument(
        help="Codes of each run: .npy, .npz, .npz:KEY, .csv or .parquet; or checkpoint folders, or name@alias. Several "
        "are runs with different training seeds."
    ),
]
FactorFile = Annotated[
    str | None, typer.Option(help="File with the factors of the same rows. A checkpoint brings its own.")
]
FactorNames = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Names of the factors, or the columns of a table that are factors."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Metrics to compute, or all that fit; default: those that papers report. Only udr, which compares several "
        "runs, needs no factors.",
    ),
]
Ica = Annotated[bool, typer.Option("--ica", help="Score the independent components of the units in their place.")]
ProtocolName = Annotated[
    str, typer.Option(help="search: DCI fitted by hist; published: by reference, as in papers, in ten times the time.")
]
EstimatorName = Annotated[
    str | None, typer.Option(help="Classifier of DCI, reference, hist or tree; default: the protocol's.")
]
NumDraws = Annotated[
    int | None,
    typer.Option(min=1, help="Computations of each metric; 1: no intervals. Default: 10, or 1 for several runs."),
]
Intervals = Annotated[
    str | None,
    typer.Option(help="Intervals over rows (bootstrap) or draws; default: rows, or draws for a complete grid."),
]
Confidence = Annotated[float, typer.Option(help="Confidence of the intervals, between 0 and 1.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draw that gives the numbers.")]
NumJobs = Annotated[
    int | None, typer.Option(min=1, help="Processes, which change no number; default: one for each CPU.")
]
Outputs = Annotated[
    list[Path] | None, typer.Option("--output", "-o", help="File to write, .json, .csv, .md, .tex or .txt. Repeatable.")
]
Picture = Annotated[
    Path | None, typer.Option(help="Picture to write, .png, .pdf or .svg: scores, and importance of each unit.")
]
Format = Annotated[str, typer.Option(help="What to print: text, json, csv, markdown or latex.")]


def evaluate(
    codes: Sources,
    factors: FactorFile = None,
    factor_names: FactorNames = None,
    metrics: Metrics = None,
    ica: Ica = False,
    protocol: ProtocolName = "search",
    estimator: EstimatorName = None,
    num_draws: NumDraws = None,
    intervals: Intervals = None,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    num_jobs: NumJobs = None,
    output: Outputs = None,
    picture: Picture = None,
    format: Format = "text",
    storage: Storage = "runs",
) -> None:
    """Score any representation: how well do its units separate the factors of its data?"""
    from raydis.evaluation.evaluate import PROTOCOLS
    from raydis.evaluation.evaluate import evaluate as score
    from raydis.evaluation.formats import FORMATS

    for option, value, known in (("--format", format, FORMATS), ("--protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise ConfigError(f"{option} {value} is unknown: use one of {', '.join(known)}")
    _check_outputs(output or [], picture, read=[*codes, *([factors] if factors else [])])
    chosen = _names(metrics)
    needs_factors = chosen != ("udr",)
    found = read_inputs(codes, factors, _names(factor_names), PROTOCOLS[protocol], storage, needs_factors=needs_factors)
    with _progress() as tell:
        result = score(
            found.codes,
            found.factors,
            factor_names=found.factor_names,
            unit_widths=found.unit_widths,
            ica=ica,
            metrics="all" if metrics == "all" else chosen,
            protocol=protocol,  # pyright: ignore[reportArgumentType]  (checked above)
            estimator=estimator,  # pyright: ignore[reportArgumentType]  (the metric checks it)
            num_draws=num_draws,
            intervals=intervals,  # pyright: ignore[reportArgumentType]  (evaluate checks it)
            confidence=confidence,
            seed=seed,
            num_jobs=num_jobs or len(os.sched_getaffinity(0)),
            on_progress=tell,
        )
    result = replace(result, notes=(*found.notes, *result.notes))
    _show(result) if format == "text" else typer.echo(FORMATS[format](result), nl=False)
    _write(result, output or [], picture)


def _names(listed: str | None) -> tuple[str, ...] | None:
    """Return the names of an option `NAME,NAME`."""
    return tuple(printable(name.strip()) for name in listed.split(",")) if listed else None


def _check_outputs(output: list[Path], picture: Path | None, *, read: list[str]) -> None:
    """Check that the files can be written, and are not among those to read, before minutes of work."""
    from raydis.evaluation.files import path_of
    from raydis.evaluation.formats import SUFFIXES
    from raydis.report.output import check_output

    inputs = {path_of(source).resolve() for source in read}
    for path in (*output, *([picture] if picture else [])):
        if path.resolve() in inputs:
            raise ConfigError(f"-o {path} is a file to read, which would be lost: name another file")
    for path in output:
        check_output(path, suffixes=SUFFIXES)
    if picture:
        from raydis.report.importance import FIGURE_FORMATS

        check_output(picture, suffixes=FIGURE_FORMATS)


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show on standard error how far the work has come: as a bar on a terminal, else as one line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: typer.echo(f"computing {step.doing}", err=True) if step.done == 0 else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.update(task, completed=step.done, total=step.total, description=step.doing)


def _show(result: Evaluation) -> None:
    """Print an evaluation in colour, where standard output has colours."""
    from rich.console import Console
    from rich.text import Text

    from raydis.evaluation.text import as_lines

    styles = {
        "plain": "",
        "title": "bold",
        "dim": "dim",
        "score": "bold",
        "bar": "blue",
        "chance": "cyan",
        "heat": "blue",
    }
    console = Console(highlight=False)
    for line in as_lines(result):
        text = Text.assemble(*((span, styles[style]) for span, style in line))
        text.rstrip()
        console.print(text, soft_wrap=True)


def _write(result: Evaluation, output: list[Path], picture: Path | None) -> None:
    """Write the files that were asked for."""
    from raydis.evaluation.formats import FORMATS, SUFFIXES
    from raydis.report.output import replace_file

    written = {path: FORMATS[SUFFIXES[path.suffix.lower()]](result).encode() for path in output}
    if picture:
        from raydis.report.importance import draw_evaluation

        written[picture] = draw_evaluation(result, suffix=picture.suffix.lower())
    for path, content in written.items():
        with replace_file(path) as file:
            file.write(content)
        typer.echo(f"wrote {path}", err=True)
