"""The commands `models VERB`: list, show, register and promote the versions of models in the registry."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raydis.cli.options import Storage

app = typer.Typer(no_args_is_help=True, help="Manage the registry: versions of models, and aliases that point to them.")


@app.command("list")
def list_models(storage: Storage = "runs") -> None:
    """List every model with its versions and aliases."""
    from raydis.registry import Registry
    from raydis.store import open_store

    registry = Registry(open_store(storage))
    names = list(registry.names())
    if not names:
        typer.echo(f"no models in {storage}; a sweep registers its best trial")
    for name in names:
        aliases = ", ".join(f"{alias} -> {version}" for alias, version in sorted(registry.aliases(name).items()))
        versions = ", ".join(map(str, registry.versions(name)))
        typer.echo(f"{name:24} versions {versions:16} {aliases or 'no alias'}")


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias.")], storage: Storage = "runs"
) -> None:
    """Print the manifest and the scores of one version as JSON."""
    from raydis.registry import Registry
    from raydis.store import open_store

    registry = Registry(open_store(storage))
    ref = registry.resolve(model)
    facts = {
        "name": ref.name,
        "version": ref.version,
        "manifest": registry.manifest(ref).model_dump(mode="json"),
        "metrics": registry.metrics(ref),
    }
    typer.echo(json.dumps(facts, indent=2))


@app.command("register")
def register_model(
    checkpoint: Annotated[str, typer.Argument(help="Folder or s3:// URI of the checkpoint of a run or trial.")],
    name: Annotated[str, typer.Argument(help="Name of the model that gets a new version.")],
    storage: Storage = "runs",
) -> None:
    """Register a checkpoint as a new version of a model. `promote` then moves an alias to it."""
    from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
    from raydis.registry import Registry
    from raydis.store import open_store

    version = Registry(open_store(storage)).register(fetch_checkpoint(checkpoint, default_cache()), name)
    typer.echo(f"registered {name}@{version}")


@app.command("promote")
def promote_model(
    model: Annotated[str, typer.Argument(help="name@version that the alias is moved to.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "best",
    storage: Storage = "runs",
) -> None:
    """Move an alias to a version. Scores are not compared: the decision is yours."""
    from raydis.registry import Registry
    from raydis.store import open_store

    registry = Registry(open_store(storage))
    ref = registry.resolve(model)
    registry.set_alias(ref.name, alias, ref.version)
    typer.echo(f"{ref.name}@{alias} -> version {ref.version}")
    typer.echo(f"services keep the version they have: set `model: {ref}` in the Serve config and run `serve deploy`")
