"""`python -m raydis VERB`: train one run, look at a checkpoint, keep the registry. Heavy imports wait for a verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raydis.edge import EXIT_CODE_HELP, run_command
from raydis.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, look at and publish disentangled diffusion models. A sweep is `python -m raydis.sweep`.",
    epilog=EXIT_CODE_HELP,
)
models = typer.Typer(no_args_is_help=True, help="The registry: versions of models, and the aliases that point at them.")
app.add_typer(models, name="models")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. train.num_images=1000. Repeatable."),
]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps; default: 20.")]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="ddim, dpmpp_2m, dpmpp_2m_karras or unipc; default: unipc.")
]
KeepDetails = Annotated[
    bool,
    typer.Option("--keep-details", help="Start from the image's own noise (DDIM inversion) instead of a seed's."),
]
Storage = Annotated[
    str,
    typer.Option(
        envvar="RAYDIS_STORAGE", help="Folder or s3://bucket/prefix, not percent-encoded, for runs and the registry."
    ),
]


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML of one run; without it the preset alone.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="small, reference, tiny; of other methods beta_vae_small, factor_vae_small, pca_ica_small; of a first "
            "stage vq, kl, vq_small, kl_small."
        ),
    ] = None,
    overrides: Overrides = None,
    storage: Storage = "runs",
    name: Annotated[str | None, typer.Option(help="Run name; default: a hash of the configuration.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Train nothing: time the parts of a few steps here, without Ray.")
    ] = False,
) -> None:
    """Train one configuration under Ray Train; the same command after an interruption goes on where it stopped."""
    from raydis.config import RunConfig
    from raydis.config.files import apply_overrides, parse, read_yaml
    from raydis.config.presets import expand

    tree = read_yaml(config) if config else {}
    if preset is not None:
        tree = {**tree, "preset": preset}
    if not tree:  # an empty file too: all defaults would be the paper's run, of days
        found = f"{config} is empty: write settings into it" if config else "give a YAML file"
        raise ConfigError(f"nothing to train: {found}, or --preset small")
    source = str(config) if config else f"preset {preset}"
    resolved = parse(RunConfig, expand(apply_overrides(tree, overrides or [])), source=source)
    if profile:
        from raydis.registry import locate_first_stage

        typer.echo(_profile(locate_first_stage(resolved, storage)))
        return
    from raydis.cluster.storage import lasting_storage
    from raydis.train.trainer import run

    result = run(resolved, storage=lasting_storage(storage), name=name, on_report=_print_report)
    typer.echo(f"checkpoint  {result.checkpoint}")
    if result.metrics.get("psnr") is not None:
        typer.echo(f"reconstruction  {result.metrics['psnr']:.2f} dB")
    if result.scores:
        typer.echo(json.dumps({key: value for key, value in result.scores.items() if key != "details"}))


def _profile(config: Any) -> str:
    """A table of where the time of one worker's share of a step goes in this process, beside the machine's ceilings."""
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


def _print_report(row: dict[str, Any]) -> None:
    if not row["finished"]:  # the last report scores what the one before it has trained
        loss = "" if row["loss"] is None else f"  loss {row['loss']:.4f}"
        typer.echo(f"{row['images_seen']} of {row['num_images']} images{loss}", err=True)


def _pick_images(editor: Any, images: list[Path], count: int) -> Any:
    """`count` images (count, H, W, C): the given files, or images of the model's own data set."""
    import numpy as np

    from raydis.data.open import open_dataset
    from raydis.data.pictures import read_picture

    if images:
        size, _, channels = editor.image_shape
        return np.stack([read_picture(path, size, channels) for path in images])
    dataset = open_dataset(editor.config.data)
    if count > len(dataset):
        raise ConfigError(f"the picture needs {count} images, {dataset.name} has {len(dataset)}: lower --num-pairs")
    return dataset.images(np.random.default_rng(7).choice(len(dataset), size=count, replace=False))


@app.command()
def traverse(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, s3:// URI, or name@alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path(
        "traversal.png"
    ),
    image: Annotated[Path | None, typer.Option(help="Start from this image; default: one of the data set.")] = None,
    num_values: Annotated[int, typer.Option(min=2, max=25, help="Columns.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed of the one starting noise.")] = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    keep_details: KeepDetails = False,
    storage: Storage = "runs",
) -> None:
    """Draw a grid: one row a unit, columns along the unit's quantiles over the data, all from one starting noise."""
    from raydis.editor.editor import Editor
    from raydis.report.grids import draw_traversal, save_picture
    from raydis.report.output import PICTURE_FORMATS, check_output

    check_output(output, suffixes=PICTURE_FORMATS)
    editor = Editor.open(checkpoint, storage=storage)
    start = _pick_images(editor, [image] if image else [], 1)[0]
    picture = draw_traversal(
        editor,
        start,
        num_values=num_values,
        seed=seed,
        num_steps=steps,
        sampler=sampler,
        keep_details=keep_details,
    )
    save_picture(picture, output)
    typer.echo(f"wrote {output}")


@app.command()
def swap(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, s3:// URI, or name@alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path("swap.png"),
    source: Annotated[Path | None, typer.Option(help="Image that is changed.")] = None,
    target: Annotated[Path | None, typer.Option(help="Image that units are taken from.")] = None,
    num_pairs: Annotated[int, typer.Option(min=1, max=20, help="Rows, where no files are given.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the one starting noise.")] = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    keep_details: KeepDetails = False,
    storage: Storage = "runs",
) -> None:
    """Draw a grid: source, target, and the source with each single unit of the target in turn."""
    from raydis.editor.editor import Editor
    from raydis.report.grids import draw_swaps, save_picture
    from raydis.report.output import PICTURE_FORMATS, check_output

    if (source is None) != (target is None):
        raise ConfigError("a swap needs --source and --target, or neither")
    check_output(output, suffixes=PICTURE_FORMATS)
    editor = Editor.open(checkpoint, storage=storage)
    files = [source, target] if source and target else []
    images = _pick_images(editor, files, 2 * num_pairs)
    picture = draw_swaps(
        editor,
        images[0::2],
        images[1::2],
        seed=seed,
        num_steps=steps,
        sampler=sampler,
        keep_details=keep_details,
    )
    save_picture(picture, output)
    typer.echo(f"wrote {output}")


@app.command()
def image(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, s3:// URI, or name@alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path(
        "image.png"
    ),
    index: Annotated[int, typer.Option(min=0, help="Place in the data set.")] = 0,
    storage: Storage = "runs",
) -> None:
    """Write one image of the data that a checkpoint was trained on, to encode and edit."""
    import numpy as np
    from PIL import Image

    from raydis.data.open import open_dataset
    from raydis.editor.editor import Editor
    from raydis.report.grids import save_picture
    from raydis.report.output import PICTURE_FORMATS, check_output

    check_output(output, suffixes=PICTURE_FORMATS)
    dataset = open_dataset(Editor.open(checkpoint, storage=storage).config.data)
    if index >= len(dataset):
        raise ConfigError(f"{dataset.name} has no image {index}: use an --index from 0 to {len(dataset) - 1}")
    pixels = dataset.images(np.array([index]))[0]
    save_picture(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), output)
    typer.echo(f"wrote {output}")


@app.command()
def report(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, s3:// URI, or name@alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.")] = Path("report.html"),
    seed: Annotated[int, typer.Option(help="Seed of the traversal's starting noise and of the images drawn.")] = 0,
    steps: Steps = None,
    storage: Storage = "runs",
) -> None:
    """Write one self-contained page: scores, learning curve, what units tell, traversal, and each unit's anchors."""
    from raydis.data.open import open_dataset
    from raydis.editor.editor import Editor
    from raydis.report.output import check_output
    from raydis.report.page import write_report

    check_output(output)
    editor = Editor.open(checkpoint, storage=storage)
    write_report(editor, open_dataset(editor.config.data), output, seed=seed, num_steps=steps)
    typer.echo(f"wrote {output}")


@models.command("list")
def list_models(storage: Storage = "runs") -> None:
    """Every model with its versions and aliases."""
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


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias.")], storage: Storage = "runs"
) -> None:
    """Manifest and scores of one version, as JSON."""
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


@models.command("register")
def register_model(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or s3:// URI, of a run or of a trial.")],
    name: Annotated[str, typer.Argument(help="Model that it becomes a new version of.")],
    storage: Storage = "runs",
) -> None:
    """Make a checkpoint a new version of a model; `promote` then points an alias at it."""
    from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
    from raydis.registry import Registry
    from raydis.store import open_store

    version = Registry(open_store(storage)).register(fetch_checkpoint(checkpoint, default_cache()), name)
    typer.echo(f"registered {name}@{version}")


@models.command("promote")
def promote_model(
    model: Annotated[str, typer.Argument(help="name@version that the alias shall point at.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "best",
    storage: Storage = "runs",
) -> None:
    """Point an alias at a version, whatever its scores: the decision is yours."""
    from raydis.registry import Registry
    from raydis.store import open_store

    registry = Registry(open_store(storage))
    ref = registry.resolve(model)
    registry.set_alias(ref.name, alias, ref.version)
    typer.echo(f"{ref.name}@{alias} -> version {ref.version}")
    typer.echo(f"services keep the version they have: set `model: {ref}` in the Serve config and run `serve deploy`")


def main() -> None:
    """Entry point of `python -m raydis`."""
    run_command(app)
