"""The report of one run: a self-contained HTML page that says what a checkpoint scored and what its units hold."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydis.data import FactorDataset, Loader
from raydis.editor.editor import Editor
from raydis.engine.information import information_of
from raydis.metrics.scores import Scores
from raydis.metrics.standing import with_spread
from raydis.metrics.table import METRICS, numbers
from raydis.metrics.telling import Information, UnitLabel, reading_order
from raydis.report.grids import draw_traversal
from raydis.report.output import replace_file
from raydis.report.plots import draw_anchors, draw_curve, draw_information

NUM_TOKENS = 1000  # drawn in a panel
ANCHORING = {
    "num_gaussians": "Gaussians",
    "moved_share": "tokens moved",
    "distance_moved": "by",
    "distance_to_anchor": "way to anchor",
    "responsibility": "responsibility",
}
OF_FACTOR = {"num_levels": "levels of the factor", "factor_share": "factor told", "component_share": "Gaussians told"}
STYLE = """
:root { color-scheme: light dark; --ink: #202124; --paper: #fff; --line: #dadce0; --soft: #5f6368 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #1b1c1f; --line: #3c4043; --soft: #9aa0a6 } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2.2rem } p { max-width: 48rem }
.soft { color: var(--soft) } img { max-width: 100%; background: #fff; border-radius: 4px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
.scroll { overflow-x: auto } pre { overflow-x: auto; font-size: 12px }
"""


def write_report(
    editor: Editor, dataset: FactorDataset, path: Path, *, seed: int = 0, num_steps: int | None = None
) -> None:
    """Write the page of a checkpoint.

    Args:
        editor: the checkpoint.
        dataset: the images that it was trained on.
        path: HTML file, replaced if it exists.
        seed, num_steps: of the traversal.
    """
    page = render_report(editor, dataset, seed=seed, num_steps=num_steps)
    with replace_file(path) as file:
        file.write(page.encode())


def render_report(editor: Editor, dataset: FactorDataset, *, seed: int = 0, num_steps: int | None = None) -> str:
    """The page as HTML; see `write_report`."""
    editor = _measured(editor, dataset)
    metrics, manifest = editor.metrics, editor.manifest
    rows = np.random.default_rng(seed).permutation(len(dataset))[:NUM_TOKENS]
    sections = [
        f"<h1>{_text(manifest.data_name)}, seed {manifest.seed}</h1>",
        f"<p class=soft>{manifest.images_seen:,} images seen · {manifest.created:%Y-%m-%d %H:%M} UTC · code "
        f"{_text((manifest.code_revision or 'unknown')[:12])}</p>",
        *_scores(metrics),
        *_units(editor),
        "<h2>Traversal</h2><p>Each row moves one unit along its quantiles over the data; the other units and the "
        "starting noise stay.</p>",
        _picture(_as_png(editor, dataset.images(rows[:1])[0], seed, num_steps), "traversal of every unit"),
        *_anchors(editor, dataset.images(np.sort(rows))),
        "<h2>Configuration</h2><details><summary>all settings</summary><pre>"
        f"{_text(json.dumps(editor.config.model_dump(mode='json'), indent=1))}</pre></details>",
    ]
    title = f"raydis · {_text(manifest.data_name)}"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>"
    )


def _scores(metrics: dict[str, Any]) -> list[str]:
    if not metrics.get("scores"):
        return ["<p>This checkpoint was not scored.</p>"]
    scores = Scores.from_dict(metrics["scores"])
    terms = f"{scores.protocol} protocol, estimator {scores.estimator}, {scores.num_images:,} images"
    if scores.status != "valid":
        return [f"<h2>Scores</h2><p>{_text(scores.status)}: {_text(scores.reason)} ({_text(terms)})</p>"]
    spread = scores.spread or {}
    body = [[each.title, _score(scores.values.get(name), spread.get(name))] for name, each in numbers().items()]
    note = f"; ± is the standard deviation over {scores.num_draws} draws of the metrics" if spread else ""
    found = [f"<h2>Scores</h2><p>{_text(terms)}{note}</p>", _table(["metric", "value"], body)]
    points = [(point, Scores.from_dict(point["scores"])) for point in metrics.get("curve") or []]
    curve = [point | {"scores": found.values} for point, found in points if found.protocol == "search"]
    if len(curve) > 1:  # the end may have been scored by another protocol, whose numbers do not go on from these
        headlines = [metric.headline for metric in METRICS.values()]
        drawn = {each.name: each.title for each in headlines if (each.low, each.high) == (0.0, 1.0)}  # as the axis
        found += ["<h2>Learning curve</h2>", _picture(draw_curve(curve, drawn), "scores by images seen")]
    return found


def _measured(editor: Editor, dataset: FactorDataset) -> Editor:
    """The editor, with what its units tell where the checkpoint does not hold it and the data has factors."""
    if editor.metrics.get("information") or dataset.space is None:
        return editor
    loader = Loader(dataset, batch_size=editor.config.train.batch_size, seed=0, device=editor.device)
    found = information_of(editor.method, dataset, loader, seed=editor.config.evaluation.seed)
    known = {"information": found.to_dict() if found else None, "factor_names": list(dataset.space.names)}
    return Editor(editor.method, editor.config, editor.manifest, editor.metrics | known, image_shape=editor.image_shape)


def _units(editor: Editor) -> list[str]:
    if not editor.metrics.get("information"):
        return []
    information, labels, names = Information(**editor.metrics["information"]), editor.labels, editor.factor_names
    order = reading_order(labels, names)
    picture = draw_information(
        np.array(information.share)[order],
        np.array(information.effect)[order],
        names,
        [f"unit {unit}: {labels[unit]}" for unit in order],
    )
    return [
        "<h2>Which unit tells which factor</h2><p>Per cent of a factor's entropy that the unit's scalar tells; a share "
        f"up to {100 * max(information.chance):.1f} % can be chance. Mixed: a second factor has at least half of the "
        "first one's share. Inactive: whatever it tells, exchanging the unit between images changes the pictures drawn "
        "from them by less than one of 255 grey levels, root mean square over the pixels (last column).</p>",
        _picture(picture, "what units tell of factors"),
    ]


def _anchors(editor: Editor, images: np.ndarray) -> list[str]:
    anchoring, cloud = editor.metrics.get("anchoring"), editor.token_cloud(images)
    if anchoring is None or cloud is None:
        return []
    labels, units = editor.labels, anchoring["units"]
    titles = [_title(unit, label) for unit, label in zip(units, labels, strict=True)]
    picture = draw_anchors(
        cloud.raw.cpu().numpy(),
        cloud.pulled.cpu().numpy(),
        cloud.components.cpu().numpy(),
        [anchors.cpu().numpy() for anchors in cloud.anchors],
        titles,
    )
    columns = ANCHORING
    if any(map(str, labels)):
        columns = {"label": "tells", **ANCHORING, **OF_FACTOR}
    body = [
        [str(unit["unit"]), *(_number(cells.get(name)) for name in columns)]
        for unit, label in zip(units, labels, strict=True)
        for cells in [{**unit, **_of_factor(unit, label), "label": str(label)}]
    ]
    return [
        "<h2>Units and their anchors</h2><p>Raw tokens of a unit in their first two principal components, coloured by "
        "the Gaussian they most probably belong to; crosses are the Gaussians' means, and a grey line leads from a "
        "token to where it was pulled.</p>",
        _picture(picture, "tokens and anchors of every unit"),
        "<p class=soft>Distances are in units of the unit's spread. Factor told: share of the entropy of the unit's "
        "first factor that the Gaussian tells; Gaussians told: the same of the Gaussians' entropy. A unit without "
        "these numbers tells no factor, has no Gaussians, or its tokens no longer vary.</p>",
        _table(["unit", *columns.values()], body),
    ]


def _of_factor(unit: dict[str, Any], label: UnitLabel) -> dict[str, Any]:
    """How well the Gaussians tell the label's first factor: nothing where the checkpoint measured another one."""
    told = label.factors[0][0] if label.factors else None
    return {name: unit[name] if told and unit["factor"] == told else None for name in OF_FACTOR}


def _title(unit: dict[str, Any], label: UnitLabel) -> str:
    title = label.lines(36)
    levels = _of_factor(unit, label)["num_levels"]
    values = f" for {levels} values" if levels else ""
    return f"unit {unit['unit']}{f': {title}' if title else ''}\n{unit['num_gaussians']} Gaussians{values}"


def _as_png(editor: Editor, image: np.ndarray, seed: int, num_steps: int | None) -> bytes:
    buffer = io.BytesIO()
    draw_traversal(editor, image, seed=seed, num_steps=num_steps).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in body)
    return (
        f"<div class=scroll><table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{rows}</table></div>"
    )


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")


def _score(value: float | None, spread: float | None) -> str:
    return "–" if value is None else with_spread(value, spread)


def _picture(png: bytes, description: str) -> str:
    return f"<img alt='{_text(description)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _text(value: object) -> str:
    return html.escape(str(value))
