"""Open the checkpoints of the final runs on the cluster: their cost, learning curves and traversals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from PIL import Image

from raydis.checkpoint.fetch import fetch_checkpoint
from raydis.cluster.connect import fetch_result
from raydis.cluster.resources import choose_device, cluster_grows, cluster_nodes, worker_resources
from raydis.config import ComputeConfig
from raydis.errors import RaydisError

if TYPE_CHECKING:  # the driver does not import torch
    from raydis.editor.editor import Editor

NUM_VALUES = 7  # columns of a traversal
MIN_UNITS, MAX_UNITS = 3, 10  # rows of a traversal
MAX_STRIPS = 140  # rows of all traversals, so that the report of many methods stays below a megabyte
STRIP_QUALITY = 50


@dataclass(frozen=True)
class Strip:
    """One row of a traversal: the unit, what it tells, and one WebP picture of the image and its NUM_VALUES edits."""

    name: str
    label: str
    picture: bytes


@dataclass(frozen=True)
class Look:
    """What a checkpoint says about its run.

    Attributes:
        num_parameters: weights that training changes; for a closed form, the numbers that it has fitted.
        train_s, cpu_s: wall-clock and CPU time of the training alone, without scoring; None if it is not recorded.
        curve: points of the learning curve, with `images_seen`, `train_s`, `cpu_s` and `scores`.
        strips: the first units of a traversal, as many as `num_rows` says; empty if none was asked for.
        num_units: N.
        unseen: why there is no traversal although one was asked for; None otherwise.
    """

    num_parameters: int
    train_s: float | None
    cpu_s: float | None
    curve: tuple[dict[str, Any], ...]
    strips: tuple[Strip, ...]
    num_units: int
    unseen: str | None


def look_at(checkpoints: Mapping[str, bool], compute: ComputeConfig, *, num_units: int) -> dict[str, Look]:
    """Look at checkpoints in tasks on the connected cluster, which may have GPUs and storage that the driver lacks.

    Args:
        checkpoints: folder or s3:// URI -> whether to draw a traversal.
        compute: that of the runs; a task reserves as much as one of their workers.
        num_units: most units of a traversal; see `num_rows`.

    Raises:
        RaydisError: a checkpoint cannot be opened.
    """
    compute = choose_device(compute, cluster_nodes(), grows=cluster_grows())
    resources = worker_resources(compute)
    task = ray.remote(_look).options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0.0), max_retries=1)
    references = {
        checkpoint: task.remote(checkpoint, num_units if draw else 0, compute)
        for checkpoint, draw in checkpoints.items()
    }
    return {checkpoint: fetch_result(reference) for checkpoint, reference in references.items()}


def num_rows(num_traversals: int) -> int:
    """Return how many units each of so many traversals shows: MIN_UNITS to MAX_UNITS, MAX_STRIPS in all if they fit."""
    return min(max(MAX_STRIPS // max(num_traversals, 1), MIN_UNITS), MAX_UNITS)


def _look(checkpoint: str, num_units: int, compute: ComputeConfig) -> Look:
    """Look at one checkpoint; with `num_units=0`, no traversal is drawn."""
    from raydis.editor.editor import Editor
    from raydis.engine.device import num_threads, resolve_device, use_threads

    use_threads(num_threads(compute.num_cpus))
    with TemporaryDirectory(prefix="raydis-") as work:
        source = fetch_checkpoint(checkpoint, Path(work))
        editor = Editor.open(source, device=resolve_device(compute))
        strips, unseen = (), None
        if num_units:
            try:
                strips = _strips(editor, num_units)
            except RaydisError as error:  # a method that cannot draw or edit
                unseen = str(error)
    found = editor.metrics
    return Look(
        num_parameters=_num_parameters(editor),
        train_s=found.get("train_s"),
        cpu_s=found.get("cpu_s"),
        curve=tuple(found.get("curve") or ()),
        strips=strips,
        num_units=editor.num_units,
        unseen=unseen,
    )


def _num_parameters(editor: Editor) -> int:
    trained = {id(weight): weight.numel() for move in editor.method.moves for weight in move.weights}
    if trained:
        return sum(trained.values())
    fitted = editor.method.state_dict()
    return sum(tensor.numel() for name, tensor in fitted.items() if name != "unit_quantiles")


def _strips(editor: Editor, num_units: int) -> tuple[Strip, ...]:
    """Return the first rows of a traversal of the image in the middle of the data set, the same for all entrants."""
    from raydis.data import open_dataset
    from raydis.report.grids import traverse_in_order

    dataset = open_dataset(editor.config.data)
    image = dataset.images(np.array([len(dataset) // 2]))[0]
    found = traverse_in_order(editor, image, num_values=NUM_VALUES)
    labels = editor.labels
    return tuple(
        Strip(f"unit {unit}", str(labels[unit]), strip_picture(images))
        for unit, images in list(zip(found.units, found.images, strict=True))[:num_units]
    )


def strip_picture(images: np.ndarray) -> bytes:
    """Return images (V, H, W, C), uint8, beside each other as one WebP picture with transparent gaps."""
    from raydis.report.grids import as_picture

    height, width = images[0].shape[:2]
    gap = max(width // 32, 1)
    sheet, left = Image.new("RGBA", (len(images) * (width + gap) + 2 * gap, height)), 0
    for position, image in enumerate(images):
        sheet.paste(as_picture(image).convert("RGB"), (left, 0))
        left += width + (gap if position else 3 * gap)  # a wider gap after the image itself
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=STRIP_QUALITY)
    return buffer.getvalue()
