"""The commands `traverse`, `swap`, `image` and `report`: draw with the model of a checkpoint, and write the files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raydis.cli.options import CheckpointName, KeepDetails, SamplerName, Steps, Storage
from raydis.errors import ConfigError


def _pick_images(editor: Any, images: list[Path], count: int) -> Any:
    """Return `count` images (count, H, W, C): the given files, or images of the model's own data set."""
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


def traverse(
    checkpoint: CheckpointName,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path(
        "traversal.png"
    ),
    image: Annotated[Path | None, typer.Option(help="Image to start from; default: one of the data set.")] = None,
    num_values: Annotated[int, typer.Option(min=2, max=25, help="Number of columns.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    keep_details: KeepDetails = False,
    storage: Storage = "runs",
) -> None:
    """Draw a grid: each row varies one unit over its range in the data, all from the same starting noise."""
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
        steps=steps,
        sampler=sampler,
        keep_details=keep_details,
    )
    save_picture(picture, output)
    typer.echo(f"wrote {output}")


def swap(
    checkpoint: CheckpointName,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path("swap.png"),
    source: Annotated[Path | None, typer.Option(help="Image to change.")] = None,
    target: Annotated[Path | None, typer.Option(help="Image to take the units from.")] = None,
    num_pairs: Annotated[int, typer.Option(min=1, max=20, help="Number of rows, if no files are given.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    keep_details: KeepDetails = False,
    storage: Storage = "runs",
) -> None:
    """Draw a grid: the source, the target, and the source with each unit of the target in turn."""
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
        steps=steps,
        sampler=sampler,
        keep_details=keep_details,
    )
    save_picture(picture, output)
    typer.echo(f"wrote {output}")


def image(
    checkpoint: CheckpointName,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file to write.")] = Path(
        "image.png"
    ),
    index: Annotated[int, typer.Option(min=0, help="Index in the data set.")] = 0,
    storage: Storage = "runs",
) -> None:
    """Write one image of the data that a checkpoint was trained on, for example to encode and edit it."""
    import numpy as np
    from PIL import Image

    from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
    from raydis.data.open import open_dataset
    from raydis.registry import locate
    from raydis.report.grids import save_picture
    from raydis.report.output import PICTURE_FORMATS, check_output

    check_output(output, suffixes=PICTURE_FORMATS)
    opened = fetch_checkpoint(locate(checkpoint, storage), default_cache())  # the weights stay where they are
    dataset = open_dataset(opened.config.data)
    if index >= len(dataset):
        raise ConfigError(f"{dataset.name} has no image {index}: use an --index from 0 to {len(dataset) - 1}")
    pixels = dataset.images(np.array([index]))[0]
    save_picture(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), output)
    typer.echo(f"wrote {output}")


def report(
    checkpoint: CheckpointName,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.")] = Path("report.html"),
    seed: Annotated[int, typer.Option(help="Seed of the traversal's starting noise, and of the choice of images.")] = 0,
    steps: Steps = None,
    storage: Storage = "runs",
) -> None:
    """Write a self-contained page: scores, learning curve, what each unit describes, a traversal, and the anchors."""
    from raydis.data.open import open_dataset
    from raydis.editor.editor import Editor
    from raydis.report.output import check_output
    from raydis.report.page import write_report

    check_output(output)
    editor = Editor.open(checkpoint, storage=storage)
    write_report(editor, open_dataset(editor.config.data), output, seed=seed, steps=steps)
    typer.echo(f"wrote {output}")
