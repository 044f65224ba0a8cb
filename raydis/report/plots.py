"""Plot a checkpoint's tokens with their anchors, and learning curves, as WebP pictures with a transparent background.

M images, N units, D unit width.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

COLUMNS = 4
COLOURS = 20  # of matplotlib's tab20
DPI = 110
LOG_STEPS = (1.0, 2.0, 5.0)  # where a logarithmic axis has ticks, in each power of ten
MANY = 200  # highest / lowest value from which only powers of ten have ticks


def draw_anchors(
    tokens: np.ndarray,
    shifted: np.ndarray,
    components: np.ndarray,
    anchors: Sequence[np.ndarray],
    titles: Sequence[str],
) -> bytes:
    """Plot a panel for each unit as a WebP picture: raw tokens in their first two principal components, and anchors.

    The colour of a token is that of its anchor. A grey line joins each raw token to its position after the shift.

    Args:
        tokens, shifted: (M, N, D), before and after the shift.
        components: (M, N), the index of each token's anchor; -1 for none.
        anchors: N arrays (K_n, D), the anchors of each unit.
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
        panel.set_title(titles[unit], fontsize=9, parse_math=False)  # a factor may be named $x$
        panel.tick_params(labelsize=7)
    for panel in panels:
        panel.set_axis_off()
    return _picture(figure)


def _plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) of points (M, D) and the two axes (D, 2) along which they vary most; D may be 1."""
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2].T
    return centre, np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))


def draw_curve(curve: Sequence[dict[str, Any]], labels: dict[str, str]) -> bytes:
    """Plot scores over the number of images seen, with one line for each metric, as a WebP picture.

    Args:
        curve: points with `images_seen` and `scores`, from a checkpoint's metrics.
        labels: the scores to draw, as names in `scores` -> names in the legend.
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
    return _picture(figure)


def draw_curves(panels: Mapping[str, Mapping[str, np.ndarray]], *, score: str, log: Collection[str] = ()) -> bytes:
    """Plot one score of several methods in panels beside each other, as a WebP picture.

    The line of a method is the mean over its runs, and its band reaches from the worst to the best of them.

    Args:
        panels: name of the horizontal axis -> name of a method -> (R, P, 2), for R runs the P points of the curve, as
            the position on the axis and the score. All panels have the same methods.
        score: name of the score, which lies in [0, 1].
        log: the panels whose horizontal axis is logarithmic.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    shared = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (axis, methods) in zip(shared, panels.items(), strict=True):
        for number, (method, runs) in enumerate(methods.items()):
            colour, (where, mean) = f"C{number % 10}", runs.mean(axis=0).T
            style = "-" if number < 10 else "--"
            panel.plot(where, mean, style, color=colour, marker="o", markersize=4, linewidth=1.8, label=method)
            panel.fill_between(where, runs[..., 1].min(0), runs[..., 1].max(0), color=colour, alpha=0.14, linewidth=0)
            if runs.shape[1] == 1:  # a closed form has no curve, and its band no width
                panel.vlines(where, runs[..., 1].min(0), runs[..., 1].max(0), color=colour, alpha=0.5, linewidth=1.8)
        if axis in log:
            panel.set_xscale("log")
            low, high = panel.get_xlim()
            # By default matplotlib labels every minor tick of a short axis, and the labels overlap.
            panel.xaxis.set_major_locator(LogLocator(subs=LOG_STEPS if high < MANY * low else (1.0,)))
            panel.xaxis.set_minor_locator(NullLocator())
        else:
            panel.set_xlim(left=0)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.3g}")
        panel.set_xlabel(axis)
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    shared[0].set_ylabel(score)
    handles, labels = shared[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return _picture(figure)


def _picture(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="webp", dpi=DPI, transparent=True, pil_kwargs={"lossless": True}
    )  # smaller than a PNG
    return buffer.getvalue()
