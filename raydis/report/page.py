"""Write the report of one run: a self-contained HTML page with the scores of a checkpoint and plots of its units.

This file prepares the data of the page. `templates/run.html` lays it out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydis.checkpoint.manifest import Manifest
from raydis.data import FactorDataset, Loader
from raydis.editor.editor import Editor
from raydis.engine.information import information_of
from raydis.methods.contract import Diagnosis, TokenCloud
from raydis.metrics.entry import Number
from raydis.metrics.reconstruction import Reconstruction
from raydis.metrics.scores import Scores
from raydis.metrics.standing import with_spread
from raydis.metrics.table import METRICS
from raydis.metrics.telling import Information, UnitLabel, reading_order
from raydis.report.grids import as_picture, traverse_in_order
from raydis.report.output import replace_file
from raydis.report.plots import draw_anchors, draw_curve
from raydis.report.template import render

NUM_TOKENS = 1000  # number of tokens in a panel of `draw_anchors`


@dataclass(frozen=True)
class Score:
    """One row of the table of scores: a title, the value with its spread, and the length of its bar.

    `share` is the length in [0, 1], or None for no bar.
    """

    title: str
    text: str
    share: float | None


@dataclass(frozen=True)
class Scoring:
    """How the checkpoint was scored, and its scores. `num_draws` is 0 if no spread is known."""

    status: str
    reason: str | None
    protocol: str
    estimator: str
    num_images: int
    num_draws: int
    rows: tuple[Score, ...]


@dataclass(frozen=True)
class UnitRow:
    """One row of a figure: a unit, the factors that it describes, and its numbers or images.

    Attributes:
        shares: for each factor, the share of its entropy that the unit tells; empty in a traversal.
        last: the change of a picture when the unit is exchanged, in grey levels of 255; 0 in a traversal.
        pngs: the images of a traversal; empty in a matrix.
    """

    name: str
    label: str
    shares: tuple[float, ...] = ()
    last: float = 0.0
    pngs: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """The shares of the factors' entropy that each unit tells, and the largest share that is reached by chance."""

    factors: Sequence[str]
    chance: float
    rows: tuple[UnitRow, ...]


@dataclass(frozen=True)
class TraversalRows:
    """The images of a traversal, with a row for each unit; `from_noise` if the model draws from noise."""

    columns: Sequence[str]
    rows: tuple[UnitRow, ...]
    from_noise: bool


@dataclass(frozen=True)
class Inside:
    """How the method works inside: its table and texts, and a picture (WebP) of tokens and anchors if it has any."""

    title: str
    panels_note: str
    picture: bytes | None
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class RunPage:
    """The data that `templates/run.html` shows."""

    manifest: Manifest
    method: str
    scoring: Scoring | None
    reconstruction: Reconstruction | None
    curve: bytes | None
    matrix: Matrix | None
    traversal: TraversalRows
    inside: Inside | None
    settings: str


def write_report(
    editor: Editor, dataset: FactorDataset, path: Path, *, seed: int = 0, steps: int | None = None
) -> None:
    """Write the page of a checkpoint.

    Args:
        editor: the checkpoint.
        dataset: the images that it was trained on.
        path: HTML file, replaced if it exists.
        seed, steps: of the traversal.
    """
    page = render_report(editor, dataset, seed=seed, steps=steps)
    with replace_file(path) as file:
        file.write(page.encode())


def render_report(editor: Editor, dataset: FactorDataset, *, seed: int = 0, steps: int | None = None) -> str:
    """Return the page as HTML; see `write_report`."""
    editor = _measured(editor, dataset)
    rows = np.random.default_rng(seed).permutation(len(dataset))[:NUM_TOKENS]
    page = RunPage(
        manifest=editor.manifest,
        method=editor.config.method.kind,
        scoring=_scoring(editor.metrics.get("scores")),
        reconstruction=Reconstruction.from_dict(editor.metrics),
        curve=_curve(editor.metrics),
        matrix=_matrix(editor),
        traversal=_traversal(editor, dataset.images(rows[:1])[0], seed, steps),
        inside=_inside(editor, dataset.images(np.sort(rows))),
        settings=json.dumps(editor.config.model_dump(mode="json"), indent=1),
    )
    return render("run.html", page=page)


def _scoring(stored: dict[str, Any] | None) -> Scoring | None:
    if not stored:
        return None
    scores = Scores.from_dict(stored)
    spread = scores.spread or {}
    return Scoring(
        status=scores.status,
        reason=scores.reason,
        protocol=scores.protocol,
        estimator=scores.estimator,
        num_images=scores.num_images,
        num_draws=scores.num_draws if spread else 0,
        rows=tuple(
            _score(number, scores.values.get(number.name), spread.get(number.name))
            for name, metric in METRICS.items()
            if name in scores.sizes
            for number in metric.numbers
        ),
    )


def _score(number: Number, value: float | None, spread: float | None) -> Score:
    text = "–" if value is None else with_spread(value, spread)
    return Score(number.title, text, value if _is_share(number) else None)


def _is_share(number: Number) -> bool:
    return (number.low, number.high) == (0.0, 1.0)


def _curve(metrics: dict[str, Any]) -> bytes | None:
    stored = metrics.get("scores")
    if not stored or Scores.from_dict(stored).status != "valid":
        return None
    points = [(point, Scores.from_dict(point["scores"])) for point in metrics.get("curve") or []]
    # The final scores may be those of another protocol, which are not comparable with the scores at the rungs.
    curve = [point | {"scores": scores.values} for point, scores in points if scores.protocol == "search"]
    computed = Scores.from_dict(stored).sizes
    headlines = [metric.headline for name, metric in METRICS.items() if name in computed]
    drawn = {number.name: number.title for number in headlines if _is_share(number)}  # the axis is [0, 1]
    return draw_curve(curve, drawn) if len(curve) > 1 else None


def _measured(editor: Editor, dataset: FactorDataset) -> Editor:
    """Return the editor with what its units tell about the factors.

    This is measured now if the checkpoint does not contain it and the data set has factors.
    """
    if editor.metrics.get("information") or not dataset.factor_names:
        return editor
    loader = Loader(dataset, batch_size=editor.config.train.batch_size, seed=0, device=editor.device)
    found = information_of(editor.method, dataset, loader, seed=editor.config.evaluation.seed)
    known = {"information": found.to_dict() if found else None, "factor_names": list(dataset.factor_names)}
    return Editor(editor.method, editor.config, editor.manifest, editor.metrics | known, image_shape=editor.image_shape)


def _matrix(editor: Editor) -> Matrix | None:
    if not editor.metrics.get("information"):
        return None
    found, labels, names = Information(**editor.metrics["information"]), editor.labels, editor.factor_names
    rows = tuple(
        UnitRow(f"unit {unit}", str(labels[unit]), shares=tuple(found.share[unit]), last=found.effect[unit])
        for unit in reading_order(labels, names)
    )
    return Matrix(names, max(found.chance), rows)


def _traversal(editor: Editor, image: np.ndarray, seed: int, steps: int | None) -> TraversalRows:
    found, labels = traverse_in_order(editor, image, seed=seed, steps=steps), editor.labels
    rows = tuple(
        UnitRow(f"unit {unit}", str(labels[unit]), pngs=tuple(map(_as_png, images)))
        for unit, images in zip(found.units, found.images, strict=True)
    )
    return TraversalRows(found.columns, rows, from_noise=editor.method.noise_shape is not None)


def _inside(editor: Editor, images: np.ndarray) -> Inside | None:
    stored, labels = editor.metrics.get("diagnosis"), editor.labels
    if not stored:
        return None
    found, cloud = editor.method.read_diagnosis(stored, labels), editor.token_cloud(images)
    labelled = any(map(str, labels))
    rows = [
        [unit, *([str(label)] if labelled else []), *cells]
        for unit, (label, cells) in enumerate(zip(labels, found.rows, strict=True))
    ]
    return Inside(
        title=found.title,
        panels_note=found.panels_note,
        picture=_panels(cloud, found, labels) if cloud else None,
        note=found.note,
        head=["unit", *(["tells"] if labelled else []), *found.columns],
        rows=rows,
    )


def _panels(cloud: TokenCloud, found: Diagnosis, labels: Sequence[UnitLabel]) -> bytes:
    lines = found.panels or ("",) * len(labels)
    return draw_anchors(
        cloud.raw.cpu().numpy(),
        cloud.pulled.cpu().numpy(),
        cloud.components.cpu().numpy(),
        [anchors.cpu().numpy() for anchors in cloud.anchors],
        [_title(unit, label, line) for unit, (label, line) in enumerate(zip(labels, lines, strict=True))],
    )


def _title(unit: int, label: UnitLabel, line: str) -> str:
    told = label.lines(36)
    return f"unit {unit}{f': {told}' if told else ''}\n{line}".rstrip()


def _as_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    as_picture(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
