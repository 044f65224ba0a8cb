"""The command `train`: train one run under Ray Train, or time its steps without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydis.cli.options import Storage
from raydis.config import RunConfig
from raydis.config.files import apply_overrides, parse, read_yaml
from raydis.config.presets import PRESETS, expand
from raydis.errors import ConfigError

if TYPE_CHECKING:
    from raydis.engine.record import RunRecord


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run; without it, the preset alone.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. train.num_images=1000. Repeatable."),
    ] = None,
    storage: Storage = "runs",
    name: Annotated[str | None, typer.Option(help="Run name; default: a hash of the configuration.")] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Do not train, but time the parts of a few steps here, without Ray."),
    ] = False,
) -> None:
    """Train one configuration under Ray Train. After an interruption, the same command continues the run."""
    tree = read_yaml(config) if config else {}
    if preset is not None:
        tree = {**tree, "preset": preset}
    if not tree:  # an empty file too: all defaults would be the paper's run, of days
        found = f"{config} is empty: write settings into it" if config else "give a YAML file"
        raise ConfigError(f"nothing to train: {found}, or --preset small")
    source = str(config) if config else f"preset {preset}"
    resolved = parse(RunConfig, expand(apply_overrides(tree, overrides or [])), source=source)
    if profile:
        from raydis.registry import locate_checkpoints

        typer.echo(_profile(locate_checkpoints(resolved, storage)))
        return
    from raydis.cluster.storage import lasting_storage
    from raydis.train.trainer import run

    result = run(resolved, storage=lasting_storage(storage), name=name, on_report=_print_report)
    typer.echo(f"checkpoint  {result.checkpoint}")
    if result.record.reconstruction is not None:
        typer.echo(f"reconstruction  {result.record.reconstruction}")
    if result.record.scores:
        scores = result.record.scores.to_dict()
        typer.echo(json.dumps({key: value for key, value in scores.items() if key != "details"}))


def _profile(config: RunConfig) -> str:
    """Return a table of the time that each part of one worker's step takes, beside the limits of the machine."""
    from raydis.data.open import open_dataset
    from raydis.engine.breakdown import describe, take_apart
    from raydis.engine.device import num_threads, resolve_device, use_threads
    from raydis.engine.state import Training

    device = resolve_device(config.compute)
    use_threads(num_threads(config.compute.num_cpus))
    typer.echo("timing a few steps: this takes up to half a minute, and longer where three steps do", err=True)
    share = config.train.batch_size // config.compute.num_workers
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"batch_size": share}),
            "compute": config.compute.model_copy(update={"num_workers": 1}),
        }
    )
    return describe(take_apart(Training(config, open_dataset(config.data), device=device), limit_s=20.0))


def _print_report(record: RunRecord) -> None:
    if not record.finished:  # the last report scores what the one before it has trained
        loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
        typer.echo(f"{record.images_seen} of {record.num_images} images{loss}", err=True)
