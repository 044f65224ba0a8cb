"""Draw an evaluation: its scores with intervals, and the importance of each unit for each factor as a heat map."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raydis.evaluation.result import Evaluation, Run, by_importance
from raydis.evaluation.text import distinct_labels, heading, interval_note, settings

FIGURE_FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
DPI = 150
MAX_PANELS = 4  # runs whose importance is drawn
MAX_UNITS = 60  # rows of a heat map
MAX_NAME = 24  # characters of a label
MAX_NUMBERED = 24  # factors up to which a cell has room for its number
LEAST_SHOWN = 0.05
ROW, COLUMN = 0.28, 0.55  # inches
DARK = "#08306b"  # the darkest of matplotlib's Blues, in which the heat maps are drawn


def draw_evaluation(found: Evaluation, *, suffix: str = ".png") -> bytes:
    """Draw an evaluation, in the format of a suffix of FIGURE_FORMATS.

    The left panel shows each number within its range, with its interval. Each panel beside it shows the importance
    (N, F) of a run, whose units are sorted so that a representation with one unit for each factor shows as a diagonal.
    """
    drawn = [run for run in found.runs if run.importance is not None][:MAX_PANELS]
    num_units = max([min(len(run.unit_names), MAX_UNITS) for run in drawn], default=0)
    height = 1.6 + max(0.34 * len(found.estimates), ROW * num_units, 1.0)
    widths = [5.2, *(1.6 + COLUMN * len(found.factor_names) for _ in drawn)]
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    figure.suptitle(f"{settings(found)}\n{interval_note(found)}", fontsize=9, parse_math=False)
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_scores(panels[0], found)
    for run, panel in zip(drawn, panels[1:], strict=True):
        _draw_importance(panel, run, found)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix.removeprefix("."), dpi=DPI, facecolor="white")
    return buffer.getvalue()


def _draw_scores(panel: Any, found: Evaluation) -> None:
    """Draw one row for each number, from its smallest to its largest possible value."""
    for row, each in enumerate(found.estimates):
        number = each.number
        panel.axhline(row, color="0.9", linewidth=6, zorder=0, solid_capstyle="butt")
        if each.value is None:
            panel.text(0.5, row, "cannot be scored", ha="center", va="center", fontsize=8, color="0.4")
            continue
        shares = [
            (value - number.low) / (number.high - number.low)
            for value in (each.value, each.low, each.high)
            if value is not None
        ]
        if len(shares) == 3:
            panel.plot(shares[1:], [row, row], color=DARK, alpha=0.45, linewidth=6, solid_capstyle="butt")
        panel.plot(shares[0], row, marker="o", color=DARK, markersize=5, clip_on=False)
        panel.text(1.03, row, f"{each.value:.3f}", va="center", fontsize=9)
    panel.set_yticks(range(len(found.estimates)))
    for label in panel.set_yticklabels([heading(each.number) for each in found.estimates], fontsize=9):
        label.set_parse_math(False)
    panel.set_ylim(len(found.estimates) - 0.5, -0.5)
    panel.set_xlim(0.0, 1.0)
    panel.tick_params(axis="both", length=0, labelsize=9)
    panel.set_xlabel("place in the range of the number", fontsize=8)
    panel.spines[:].set_visible(False)


def _draw_importance(panel: Any, run: Run, found: Evaluation) -> None:
    """Draw a heat map with a row for each unit and a column for each factor."""
    importance = run.importance
    assert importance is not None
    order = by_importance(importance, num_most=MAX_UNITS)
    shown = importance[order]
    panel.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect=ROW / COLUMN)
    panel.set_anchor("NW")
    if shown.shape[1] <= MAX_NUMBERED:
        for (row, factor), value in np.ndenumerate(shown):
            if value >= LEAST_SHOWN:
                colour = "white" if value > 0.55 else "0.15"
                panel.text(factor, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(shown.shape[1]))
    panel.set_yticks(range(len(order)))
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    labels = panel.set_xticklabels(distinct_labels(found.factor_names, MAX_NAME), fontsize=9, **turned)
    labels += panel.set_yticklabels(distinct_labels([run.unit_names[unit] for unit in order], MAX_NAME), fontsize=9)
    for label in labels:
        label.set_parse_math(False)  # a factor may be named $x$
    panel.tick_params(length=0)
    panel.set_xticks(np.arange(1, shown.shape[1]) - 0.5, minor=True)
    panel.set_yticks(np.arange(1, len(order)) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="minor", length=0)
    panel.spines[:].set_visible(False)
    of_run = f" of {run.name}" if len(found.runs) > 1 else ""
    rest = f", the first {MAX_UNITS} of {len(importance)} units" if len(order) < len(importance) else ""
    panel.set_title(f"importance of units for factors{of_run}{rest}", fontsize=9, parse_math=False)
