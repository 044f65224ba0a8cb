"""Plots of a checkpoint: tokens with their anchors, what units tell, learning curve. Each is a PNG as bytes.

M images, N units, D unit width, F factors.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLUMNS = 4
COLOURS = 20  # of matplotlib's tab20


def draw_anchors(
    tokens: np.ndarray,
    shifted: np.ndarray,
    components: np.ndarray,
    anchors: Sequence[np.ndarray],
    titles: Sequence[str],
) -> bytes:
    """One panel a unit: raw tokens in their first two principal components, coloured by Gaussian, and the anchors.

    A grey line joins a raw token to where it was pulled.

    Args:
        tokens, shifted: (M, N, D), before and after the shift.
        components: (M, N), the Gaussian of each token; -1 for none.
        anchors: N arrays (K_n, D), the means.
        titles: N texts.
    """
    num_units = tokens.shape[1]
    rows = -(-num_units // COLUMNS)
    figure = Figure(figsize=(3.0 * COLUMNS, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for unit, panel in zip(range(num_units), panels, strict=False):
        centre, axes = _plane(tokens[:, unit])
        raw, moved = (tokens[:, unit] - centre) @ axes, (shifted[:, unit] - centre) @ axes
        panel.plot(*np.stack([raw, moved]).transpose(2, 0, 1), color="0.6", linewidth=0.4, zorder=1)
        colour = components[:, unit] % COLOURS
        panel.scatter(*raw.T, c=colour, cmap="tab20", vmin=0, vmax=COLOURS - 1, s=5, linewidths=0, zorder=2)
        if len(anchors[unit]):
            panel.scatter(*((anchors[unit] - centre) @ axes).T, marker="x", c="black", s=36, linewidths=1.4, zorder=3)
        panel.set_title(titles[unit], fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in panels:
        panel.set_axis_off()
    return _png(figure)


def _plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) of points (M, D) and the two axes (D, 2) along which they vary most; D may be 1."""
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2].T
    return centre, np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))


def draw_information(
    share: np.ndarray, effect: np.ndarray, factor_names: Sequence[str], captions: Sequence[str]
) -> bytes:
    """What each unit tells of each factor, a row a unit.

    Args:
        share: (N, F), shares of a factor's entropy.
        effect: (N,), change of a picture when the unit is exchanged, grey levels.
        factor_names: F names.
        captions: N texts, left of the rows.
    """
    num_units, num_factors = share.shape
    figure = Figure(figsize=(4.2 + 0.62 * (num_factors + 1), 1.1 + 0.3 * num_units), layout="constrained")
    panel = figure.subplots()
    panel.imshow(np.column_stack([share, np.zeros(num_units)]), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for unit, factor in np.ndindex(num_units, num_factors):
        ink = "white" if share[unit, factor] > 0.6 else "black"
        text = f"{100 * share[unit, factor]:.0f}"
        panel.text(factor, unit, text, ha="center", va="center", fontsize=7, color=ink)
    for unit in range(num_units):
        panel.text(num_factors, unit, f"{effect[unit]:.1f}", ha="center", va="center", fontsize=7)
    panel.axvline(num_factors - 0.5, color="0.7", linewidth=0.8)
    names = [*(name.replace("_", "\n") for name in factor_names), "change,\ngrey levels"]
    panel.xaxis.tick_top()
    panel.set_xticks(range(num_factors + 1), labels=names, fontsize=8)
    panel.set_yticks(range(num_units), labels=list(captions), fontsize=8)
    return _png(figure)


def draw_curve(curve: Sequence[dict[str, Any]], labels: dict[str, str]) -> bytes:
    """Scores against images seen, one line a metric.

    Args:
        curve: points of a checkpoint's metrics, `images_seen` and `scores`.
        labels: what to draw: name of a number in the scores -> name in the legend.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for field, label in labels.items():
        points = [(point["images_seen"], point["scores"].get(field)) for point in curve]
        seen = [(images, value) for images, value in points if value is not None]
        panel.plot(*np.array(seen).reshape(-1, 2).T, marker="o", markersize=4, label=label)
    panel.set_xlabel("images seen")
    panel.xaxis.set_major_formatter(lambda images, _: f"{images:,.0f}")
    panel.set_xlim(left=0)
    panel.set_ylim(0, 1)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
