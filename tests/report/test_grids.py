from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raydis.metrics.telling import UnitLabel, label_units
from raydis.report import grids
from raydis.report.grids import GAP_PX, PAPER, draw_grid, draw_swaps, draw_traversal, save_picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(*colours: tuple[int, ...], rows: int) -> np.ndarray:
    """A grid of plain cells of 4 x 4 pixels."""
    cells = np.array(colours, np.uint8).reshape(rows, -1, 1, 1, len(colours[0]))
    return np.broadcast_to(cells, (*cells.shape[:2], 4, 4, len(colours[0])))


# ---- geometry


def test_cells_lie_in_rows_and_columns_with_gaps_on_paper() -> None:
    sheet = draw_grid(plain(RED, GREEN, BLUE, BLUE, RED, GREEN, rows=2), row_labels=["", ""], cell_px=10)
    left, top, step = 16, 8, 10 + GAP_PX
    assert sheet.mode == "RGB"
    assert sheet.size == (left + 3 * step + 8, top + 2 * step + 8)
    expected = [[RED, GREEN, BLUE], [BLUE, RED, GREEN]]
    for row in range(2):
        for column in range(3):
            x, y = left + column * step, top + row * step
            corners = {sheet.getpixel((x + dx, y + dy)) for dx in (0, 9) for dy in (0, 9)}
            assert corners == {expected[row][column]}
            assert sheet.getpixel((x + 10, y)) == PAPER
            assert sheet.getpixel((x, y + 10)) == PAPER


def test_labels_and_a_title_make_room_for_themselves() -> None:
    images = plain(RED, rows=1)
    bare = draw_grid(images, row_labels=[""], cell_px=40)
    headed = draw_grid(images, row_labels=[""], column_labels=["x"], title="t", cell_px=40)
    assert headed.height == bare.height + 20 + 26
    wide = draw_grid(images, row_labels=["a long label of a row\nsecond"], cell_px=40)
    assert wide.width > bare.width + 80
    assert draw_grid(images, row_labels=[""], title="a title much wider than its only image").width > bare.width
    left = np.asarray(wide)[8:48, : wide.width - 40 - GAP_PX - 8]
    assert (left != PAPER).any()  # the label is drawn, and left of the image


def test_grey_images_are_drawn_as_grey() -> None:
    sheet = draw_grid(plain((77,), rows=1), row_labels=[""], cell_px=10)
    assert sheet.getpixel((16 + 5, 8 + 5)) == (77, 77, 77)


@pytest.mark.parametrize(
    ("rows", "columns", "found"), [(["a"], [], "1 row and 0 column"), (["a", "b"], ["x"], "2 row and 1 column")]
)
def test_as_many_labels_as_rows_and_columns_are_needed(rows: list[str], columns: list[str], found: str) -> None:
    images = plain(RED, GREEN, BLUE, RED, GREEN, BLUE, rows=2)
    with pytest.raises(ValueError, match=f"a grid of 2 x 3 has {found} labels"):
        draw_grid(images, row_labels=rows, column_labels=columns)


def test_a_saved_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    sheet = draw_grid(plain(RED, rows=1), row_labels=["a"])
    save_picture(sheet, tmp_path / "new" / "folder" / "grid.png")
    save_picture(sheet, tmp_path / "new" / "folder" / "grid.png")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "new" / "folder" / "grid.png") as read:
        assert read.format == "PNG"
        assert (np.asarray(read) == np.asarray(sheet)).all()


# ---- traversals and swaps


class StubEditor:
    """Pictures say which unit they are of: a cell's grey is 10 + unit; swaps add the source's grey."""

    num_units = 4
    factor_names = ("hue", "scale", "floor_shape")

    def __init__(self, labels: tuple[UnitLabel, ...] | None) -> None:
        self.labels = labels or label_units(None, self.factor_names, self.num_units)

    def traverse(self, image: np.ndarray, *, units: list[int], num_values: int, **options: object) -> np.ndarray:
        cells = 10 + np.array(units, np.uint8)
        return np.broadcast_to(cells[:, None, None, None, None], (len(units), num_values, *image.shape))

    def swap_each(self, source: np.ndarray, target: np.ndarray, **options: object) -> np.ndarray:
        return np.stack([source + 10 + unit for unit in range(self.num_units)])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `draw_grid` was last asked for."""
    last = SimpleNamespace()

    def spy(images: np.ndarray, **labels: object) -> Image.Image:
        last.greys, last.labels = images[..., 0, 0, 0], labels
        return draw_grid(images, **labels)

    monkeypatch.setattr(grids, "draw_grid", spy)
    return last


LABELS = (
    UnitLabel("factor", (("floor_shape", 0.9),)),
    UnitLabel("inactive"),
    UnitLabel("mixed", (("hue", 0.7), ("scale", 0.4))),
    UnitLabel("factor", (("hue", 0.6),)),
)


def test_a_traversals_rows_are_sorted_by_factor_and_start_with_the_image(drawn: SimpleNamespace) -> None:
    sheet = draw_traversal(StubEditor(LABELS), np.full((4, 4, 1), 5, np.uint8), num_values=3)
    assert drawn.greys.tolist() == [[5, 13, 13, 13], [5, 10, 10, 10], [5, 12, 12, 12], [5, 11, 11, 11]]
    assert drawn.labels["row_labels"] == [
        "unit 3\nhue 60 %",
        "unit 0\nfloor shape 90 %",
        "unit 2\nmixed: hue 70 %,\nscale 40 %",
        "unit 1\ninactive",
    ]
    assert drawn.labels["column_labels"] == ["image", "2.5 %", "50 %", "97.5 %"]
    assert sheet.height == 8 + 26 + 20 + 4 * (80 + GAP_PX) + 8


def test_without_scores_a_traversals_rows_are_in_the_order_of_units(drawn: SimpleNamespace) -> None:
    draw_traversal(StubEditor(None), np.full((4, 4, 1), 5, np.uint8), num_values=2)
    assert drawn.greys[:, 1].tolist() == [10, 11, 12, 13]
    assert drawn.labels["row_labels"] == ["unit 0", "unit 1", "unit 2", "unit 3"]


def test_a_swap_grid_has_source_target_and_every_unit(drawn: SimpleNamespace) -> None:
    sources, targets = (np.full((2, 4, 4, 1), grey, np.uint8) for grey in (100, 200))
    sheet = draw_swaps(StubEditor(None), sources, targets)
    assert drawn.greys.tolist() == [[100, 200, 110, 111, 112, 113]] * 2
    assert drawn.labels["column_labels"] == ["source", "target", "unit 0", "unit 1", "unit 2", "unit 3"]
    assert sheet.height == 8 + 26 + 20 + 2 * (64 + GAP_PX) + 8


def test_a_swap_grids_columns_have_the_labels_and_the_order_of_a_traversals_rows(drawn: SimpleNamespace) -> None:
    source, target = (np.full((1, 4, 4, 1), grey, np.uint8) for grey in (100, 200))
    sheet = draw_swaps(StubEditor(LABELS), source, target)
    assert drawn.greys.tolist() == [[100, 200, 113, 110, 112, 111]]
    columns = drawn.labels["column_labels"]
    assert [column.split("\n")[0] for column in columns[2:]] == ["unit 3", "unit 0", "unit 2", "unit 1"]
    assert columns[4] == "unit 2\nmixed: hue\n70 %,\nscale 40 %"
    assert sheet.height == 8 + 26 + (4 + 4 * 16) + 1 * (64 + GAP_PX) + 8  # room for four lines
