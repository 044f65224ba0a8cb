"""Draw traversals and swaps as one picture: a grid of images with labels for its rows and columns.

R rows, V columns, H W C image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raydis.editor.editor import Editor
from raydis.metrics.telling import UnitLabel, reading_order
from raydis.report.output import PICTURE_FORMATS, replace_file

GAP_PX = 3
INK = (32, 33, 36)
PAPER = (255, 255, 255)


def draw_grid(
    images: np.ndarray,
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    title: str = "",
    cell_px: int = 80,
) -> Image.Image:
    """Lay uint8 images (R, V, H, W, C) out in a grid.

    Args:
        images: R rows of V images.
        row_labels: R texts, left of the rows; they may have several lines.
        column_labels: V texts above the columns, which may have several lines; or an empty sequence.
        title: one line above the grid.
        cell_px: side of a drawn image.

    Returns:
        An RGB picture on a white background.
    """
    rows, columns = images.shape[:2]
    if len(row_labels) != rows or (column_labels and len(column_labels) != columns):
        raise ValueError(
            f"a grid of {rows} x {columns} has {len(row_labels)} row and {len(column_labels)} column labels"
        )
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    left = 16 + max((int(small.getlength(line)) for label in row_labels for line in label.split("\n")), default=0)
    head = 4 + 16 * max(len(label.split("\n")) for label in column_labels) if column_labels else 0
    top = 8 + (26 if title else 0) + head
    step = cell_px + GAP_PX
    width = max(left + columns * step + 8, int(font.getlength(title)) + 16)
    sheet = Image.new("RGB", (width, top + rows * step + 8), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 8), title, INK, font)
    for column, label in enumerate(column_labels):
        x = left + column * step + cell_px / 2
        pen.multiline_text((x, top - 2), label, INK, small, anchor="md", align="center")
    for row, label in enumerate(row_labels):
        pen.multiline_text((left - 8, top + row * step + cell_px / 2), label, INK, small, anchor="rm", align="right")
        for column in range(columns):
            cell = as_picture(images[row, column]).convert("RGB")
            x, y = left + column * step, top + row * step
            sheet.paste(cell.resize((cell_px, cell_px), Image.Resampling.BICUBIC), (x, y))
    return sheet


def as_picture(image: np.ndarray) -> Image.Image:
    """Return a uint8 image (H, W, C), with C 1 or 3, as a grey or RGB picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the path's suffix; see PICTURE_FORMATS. Raises OutputError if that fails."""
    with replace_file(path) as file:
        picture.save(file, format=PICTURE_FORMATS[path.suffix.lower()], optimize=True, quality=95)


class Traversal(NamedTuple):
    """A row for each unit, in the order of `reading_order`: the image, then the image with this unit changed.

    The values of the unit are its quantiles over the data.
    """

    units: list[int]
    images: np.ndarray  # (R, 1 + V, H, W, C) uint8
    columns: list[str]


def traverse_in_order(editor: Editor, image: np.ndarray, *, num_values: int = 7, **sampling: Any) -> Traversal:
    """Traverse every unit of an image (H, W, C), starting from the same noise; `sampling` as in `Editor.traverse`."""
    units = reading_order(editor.labels, editor.factor_names)
    drawn = editor.traverse(image, units=units, num_values=num_values, **sampling)
    images = np.concatenate([np.broadcast_to(image, (len(units), 1, *image.shape)), drawn], axis=1)
    return Traversal(units, images, ["image", *(f"{rank:.3g} %" for rank in np.linspace(2.5, 97.5, num_values))])


def draw_traversal(
    editor: Editor,
    image: np.ndarray,
    *,
    num_values: int = 7,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    keep_details: bool = False,
) -> Image.Image:
    """Draw a traversal with the units' labels; see `traverse_in_order`."""
    options = {"seed": seed, "steps": steps, "sampler": sampler, "keep_details": keep_details}
    units, images, columns = traverse_in_order(editor, image, num_values=num_values, **options)
    return draw_grid(
        images,
        row_labels=[_caption(unit, editor.labels[unit], width=26) for unit in units],
        column_labels=columns,
        title="each row moves one unit along its quantiles",
    )


def draw_swaps(
    editor: Editor,
    sources: np.ndarray,
    targets: np.ndarray,
    *,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    keep_details: bool = False,
) -> Image.Image:
    """Draw a grid with a row for each pair of images: source, target, and the source with single units of the target.

    The columns of the units are in the order of `reading_order`.
    """
    labels = editor.labels
    order = reading_order(labels, editor.factor_names)
    options = {"seed": seed, "steps": steps, "sampler": sampler, "keep_details": keep_details}
    rows = [
        np.concatenate([[source, target], editor.swap_each(source, target, **options)[order]])
        for source, target in zip(sources, targets, strict=True)
    ]
    return draw_grid(
        np.stack(rows),
        row_labels=[f"pair {row + 1}" for row in range(len(rows))],
        column_labels=["source", "target", *(_caption(unit, labels[unit], width=10) for unit in order)],
        title="the source with single units of the target",
        cell_px=64,
    )


def _caption(unit: int, label: UnitLabel, *, width: int) -> str:
    return f"unit {unit}\n{label.lines(width)}".rstrip()
