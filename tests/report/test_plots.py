from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raydis.report import plots


@pytest.mark.parametrize(("lowest", "highest"), [(1.7, 23.0), (1.7, 68.0), (3.0, 6.0), (0.2, 900.0), (12.0, 13.0)])
def test_the_labels_of_a_logarithmic_axis_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch, lowest: float, highest: float
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_picture", lambda figure: drawn.append(figure) or b"")
    where = np.geomspace(lowest, highest, 4)
    curves = {f"method {n}": np.stack([where * (1 + n), np.full(4, 0.1 * n)], axis=1)[None] for n in range(3)}
    plots.draw_curves({"images": curves, "seconds": curves}, score="a score", log=["seconds"])
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[1].xaxis
    left, right = sorted(axis.get_view_interval())
    labels = [
        tick.label1
        for ticks in (axis.get_major_ticks(), axis.get_minor_ticks())
        for tick in ticks
        if tick.label1.get_text() and left <= tick.get_loc() <= right
    ]
    assert len(labels) >= 1
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(first.x1 <= second.x0 for first, second in itertools.pairwise(boxes))
