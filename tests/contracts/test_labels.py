"""Whoever names what a unit tells says the same: pictures, report and service, of one checkpoint."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raydis.data import FactorDataset
from raydis.editor.editor import Editor
from raydis.metrics.telling import UnitLabel
from raydis.registry import ModelRef
from raydis.report import grids, page
from raydis.report.grids import draw_grid, draw_swaps, draw_traversal
from raydis.report.page import render_report
from raydis.report.plots import draw_anchors
from raydis.serve.model import ServedModel
from raydis.serve.schemas import ModelFacts

EVERY_KIND = {
    "share": ((0.9, 0, 0, 0.5, 0, 0), (0.3, 0, 0.7, 0, 0, 0), (0, 0.9, 0, 0, 0, 0), (0, 0, 0, 0, 0.005, 0)),
    "chance": (0.01,) * 6,
    "effect": (5.0, 10.0, 0.5, 5.0),
}


def words(text: str) -> str:
    """A label from a picture, whose lines are broken."""
    return text.replace("\n", " ").strip()


@pytest.mark.parametrize("information", [None, EVERY_KIND], ids=["as measured", "of every kind"])
def test_pictures_report_and_service_say_the_same_of_each_unit(
    finished: Editor, dataset: FactorDataset, information: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.metrics["information"] is not None
    metrics = finished.metrics | ({"information": information} if information else {})
    editor = Editor(finished.method, finished.config, finished.manifest, metrics, image_shape=finished.image_shape)
    drawn = SimpleNamespace(rows=[], columns=[], panels=[])

    def grid(images: np.ndarray, **labels: Any) -> Any:
        drawn.rows, drawn.columns = labels["row_labels"], labels["column_labels"]
        return draw_grid(images, **labels)

    def panels(*arguments: Any) -> bytes:
        drawn.panels = arguments[-1]
        return draw_anchors(*arguments)

    monkeypatch.setattr(grids, "draw_grid", grid)
    monkeypatch.setattr(page, "draw_anchors", panels)
    images = dataset.images(np.array([0, 5]))

    served = ServedModel(editor, ModelRef("tiny", 1))
    told = {unit.index: unit for unit in ModelFacts.of(served).units}
    said = {index: unit.label for index, unit in told.items()}
    assert all(str(UnitLabel(unit.kind, tuple(unit.factors.items()))) == unit.label != "" for unit in told.values())

    draw_traversal(editor, images[0], steps=1)
    by_traversal = [re.fullmatch(r"unit (\d+) (.*)", words(row)) for row in drawn.rows]
    assert {int(found[1]): found[2] for found in by_traversal if found} == said

    draw_swaps(editor, images[:1], images[1:], steps=1)
    by_swap = [re.fullmatch(r"unit (\d+) (.*)", words(column)) for column in drawn.columns[2:]]
    assert {int(found[1]): found[2] for found in by_swap if found} == said

    text = render_report(editor, dataset, steps=1)
    in_page = [
        (int(unit), html.unescape(label)) for unit, label in re.findall(r"<th>unit (\d+)<small>(.*?)</small>", text)
    ]
    in_matrix, in_traversal = in_page[: len(said)], in_page[len(said) :]
    assert in_matrix == in_traversal
    assert dict(in_matrix) == said
    in_panels = [re.fullmatch(r"unit (\d+): (.*) \d+ Gaussians.*", words(title)) for title in drawn.panels]
    assert {int(found[1]): found[2] for found in in_panels if found} == said
    for unit, label in said.items():
        (row,) = re.findall(rf"<tr><td>{unit}</td><td>(.*?)</td>", text)
        assert html.unescape(row) == label
    order = [int(found[1]) for found in by_traversal if found]
    assert order == [int(found[1]) for found in by_swap if found] == [unit for unit, _ in in_matrix]


def test_every_kind_has_its_place(finished: Editor) -> None:
    metrics = finished.metrics | {"information": EVERY_KIND}
    editor = Editor(finished.method, finished.config, finished.manifest, metrics, image_shape=finished.image_shape)
    assert list(map(str, editor.labels)) == [
        "mixed: floor hue 90 %, scale 50 %",
        "object hue 70 %",
        "inactive",
        "no factor",
    ]
