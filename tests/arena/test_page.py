"""The report of an arena: what it says, that it stands alone, and that it never shows a failure as a number."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from raydis.arena.folder import Sweeps
from raydis.arena.look import Look, Strip, num_rows, strip_picture
from raydis.arena.output import to_csv, to_markdown
from raydis.arena.page import render_page
from raydis.arena.printout import print_result
from raydis.arena.quoted import QUOTED
from raydis.arena.result import ArenaResult, entry_of, result_of
from raydis.arena.spec import ArenaSpec, load_arena
from tests.arena.conftest import final_rows, row, summary
from tests.records import scores_of


class Reader(HTMLParser):
    """Texts and pictures of a page; an unclosed tag is an error."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.dots = 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.dots += tag == "circle"
        for name, value in attrs:
            if name in ("src", "href"):
                head, _, data = (value or "").partition(",")
                assert head in ("data:image/png;base64", "data:image/webp;base64")  # nothing is fetched from elsewhere
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


STUDY = Sweeps(1, (), summary([row(0, 0.9), row(1, None)]))


def point(images: int, dci: float, **over: Any) -> dict[str, Any]:
    scores = scores_of(dci_disentanglement=dci, factor_vae=dci).to_dict() | over
    return {"images_seen": images, "train_s": images / 100, "cpu_s": images / 200, "scores": scores}


@pytest.fixture
def result(spec: ArenaSpec) -> ArenaResult:
    scores: dict[str, dict[int, float | None]] = {
        "ours": {11: 0.61, 12: 0.62, 13: 0.66},
        "rival": {11: 0.41, 12: None, 13: 0.43},
    }
    entries = [entry_of(spec, name, STUDY, Sweeps(1, tuple(final_rows(name, found)), None))
               for name, found in scores.items()]  # fmt: skip
    dead = Sweeps(1, (), summary([row(0, None, reason="no unit <script>alert(1)</script> is open")]))
    entries.append(entry_of(spec, "closed", dead, Sweeps(0, (), None)))
    return result_of(spec, entries, name="duel", folder="/runs/arenas/duel")


@pytest.fixture
def looks(result: ArenaResult) -> dict[str, Look]:
    picture = strip_picture(np.full((8, 16, 16, 3), 128, np.uint8))
    strips = tuple(Strip(f"unit {unit}", "floor hue 90 %", picture) for unit in range(4))
    curve = (point(320, 0.1), point(640, 0.2))
    return {
        str(run.checkpoint): Look(1234567, 20.0, 12.5, curve, strips if run.seed != 12 else (), 6, None)
        for entry in result.entries
        for run in entry.runs
        if run.reason is None
    }


@pytest.fixture
def page(result: ArenaResult, spec: ArenaSpec, looks: dict[str, Look]) -> str:
    return render_page(result, spec, looks, ["python", "-m", "raydis.arena", "my duel.yaml"])


def test_the_page_stands_alone_and_shows_seeds_tests_costs_curves_and_traversals(page: str) -> None:
    read = Reader(page)
    assert read.dots == 2 * (3 + 2)  # objectives, valid seeds
    assert {picture.format for picture in read.pictures} == {"WEBP"}
    plots = [picture for picture in read.pictures if picture.height > 100]
    assert len(plots) == 2  # a learning curve for each objective
    assert len(read.pictures) - len(plots) == 4 * (2 + 2)  # units, of the best and the worst seed of both entrants
    for text in (
        "0.630 ± 0.026",  # mean and deviation of 0.61, 0.62 and 0.66
        "0.610",  # and the worst of them
        "2 of 3",
        "best seed, 13: dci 0.660, fvae 0.330",
        "worst seed, 11: dci 0.610, fvae 0.305",
        "1,234,567",
        "12.5 s",
        "20.0 s",
        "2 further units are not shown",
        "python -m raydis.arena 'my duel.yaml'",
    ):
        assert text in read.texts, text
    assert "0.900 → 0.630" in read.texts  # what the study promised, and what came of it


def test_a_failure_is_a_reason_and_never_a_number(page: str) -> None:
    texts = Reader(page).texts
    assert "failed: no unit <script>alert(1)</script> is open" in texts
    assert "not in the mean: FitError: the loss became nan" in texts
    assert "0 of 3" in texts
    ours = " ".join(texts).partition("Quoted from")[0].replace("the loss became nan", "")
    assert not re.search(r"\b(?:0\.000|nan)\b", ours)


def test_no_text_of_a_run_or_a_file_becomes_markup(page: str) -> None:
    assert "<script" not in page
    assert "&lt;b&gt;no&lt;/b&gt; markup" in page


def test_quoted_numbers_stand_apart_with_their_caveats(page: str, result: ArenaResult, spec: ArenaSpec) -> None:
    before, _, after = page.partition("Quoted from the literature")
    assert "0.981" not in before
    assert "1.000 ± 0.000" not in before
    assert "1.000 ± 0.000" in after
    assert "Ours are a rendering of the same scene" in after
    for data, words in (("cars3d", "repeated ten times"), ("mpi3d", "mixes three data sets")):
        page = _on(spec, result, data)
        assert words in page
    assert "Quoted" not in _on(spec, result, "sprites")
    quoted = [number for rows in QUOTED.values() for each in rows for number in (*each.dci, *each.factor_vae)]
    assert all(0.0 <= number <= 1.0 for number in quoted)


def _on(spec: ArenaSpec, result: ArenaResult, data: str) -> str:
    entrants = {
        name: entrant.model_copy(update={"run": entrant.run.model_copy(
            update={"data": entrant.run.data.model_copy(update={"name": data})})})
        for name, entrant in spec.entrants.items()
    }  # fmt: skip
    return render_page(result, spec.model_copy(update={"entrants": entrants}), {}, ["command"])


def test_points_of_another_classifier_or_of_other_images_are_not_drawn(
    result: ArenaResult, spec: ArenaSpec, looks: dict[str, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    import raydis.arena.page as module

    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "draw_curves", lambda panels, **_: drawn.append(panels) or b"")
    curve = (point(320, 0.1), point(640, 0.2, estimator="reference"))
    render_page(result, spec, {key: _with_curve(look, curve) for key, look in looks.items()}, ["command"])
    images, cpu = drawn[0].values()
    assert images["Ours"].tolist() == [[[320.0, 0.1]]] * 3
    assert cpu["rival"].tolist() == [[[1.6, 0.1]]] * 2
    old = tuple(each | {"cpu_s": None} for each in curve)
    drawn.clear()
    render_page(result, spec, {key: _with_curve(look, old) for key, look in looks.items()}, ["command"])
    assert drawn == []


def _with_curve(look: Look, curve: tuple[dict[str, Any], ...]) -> Look:
    return Look(look.num_parameters, look.train_s, look.cpu_s, curve, look.strips, look.num_units, None)


def test_a_method_that_cannot_draw_says_why(result: ArenaResult, spec: ArenaSpec, looks: dict[str, Look]) -> None:
    mute = {key: Look(1, None, None, (), (), 4, "this method draws nothing") for key in looks}
    texts = Reader(render_page(result, spec, mute, ["command"])).texts
    assert texts.count("this method draws nothing") == 2
    assert "–" in texts


def test_tables_for_pages_and_programs_have_the_same_numbers(
    result: ArenaResult, spec: ArenaSpec, looks: dict[str, Look]
) -> None:
    ours, rival, closed = to_markdown(result, spec, looks).splitlines()[2:]
    assert ours == "| Ours | 3 of 3 | 0.630 ± 0.026 | 0.610 | 0.315 ± 0.013 | 0.305 | 1,234,567 | 12.5 |"
    assert rival.startswith("| rival | 2 of 3 | 0.420 ± 0.014 | 0.410 |")
    assert closed == "| closed | 0 of 3 | failed |  | failed |  |  |  |"
    rows = [line.split(",") for line in to_csv(result, looks).splitlines()]
    column = rows[0].index("dci_disentanglement")
    assert [each[column] for each in rows[1:]] == ["0.61", "0.62", "0.66", "0.41", "", "0.43"]


def test_the_axis_of_an_objective_has_the_ends_of_its_number(path: Path) -> None:
    terms = ["run.evaluation={estimator: tree, metrics: [dci_es]}", "objectives=[{metric: dci_explicitness}]"]
    spec = load_arena(path, terms)
    entries = [entry_of(spec, name, Sweeps(0, (), None), Sweeps(0, (), None)) for name in spec.entrants]
    texts = Reader(render_page(result_of(spec, entries, name="duel", folder="-"), spec, {}, ["command"])).texts
    assert "-1 to 1, a dot for each seed" in texts


def test_a_title_is_no_markup_in_markdown_and_on_the_terminal(
    spec: ArenaSpec, result: ArenaResult, looks: dict[str, Look]
) -> None:
    entrants = {
        name: each.model_copy(update={"title": f"{name} | [/b] [red]*x*"}) for name, each in spec.entrants.items()
    }
    titled = spec.model_copy(update={"entrants": entrants})
    head, _, *rows = to_markdown(result, titled, looks).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {head.count("|")}
    assert r"ours \| [/b] [red]\*x\*" in rows[0]
    console = Console(file=io.StringIO(), width=200)
    print_result(result, titled, ["command"], console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "ours | [/b] [red]*x* has the best mean" in printed


def test_a_strip_shows_the_image_apart_from_its_edits() -> None:
    images = np.zeros((3, 32, 32, 1), np.uint8)
    images[:] = np.array([50, 150, 250], np.uint8).reshape(3, 1, 1, 1)
    picture = Image.open(io.BytesIO(strip_picture(images)))
    assert picture.size == (3 * 33 + 2, 32)
    alpha = np.asarray(picture.convert("RGBA"))[16, :, 3]
    assert [int(alpha[x]) for x in (16, 33, 35 + 16, 68 + 16)] == [255, 0, 255, 255]


def test_a_report_of_many_entrants_has_a_line_for_each(path: Any, looks: dict[str, Look]) -> None:
    more = [f"entrants.m{number}={{run: {{preset: beta_vae_small}}}}" for number in range(10)]
    spec = load_arena(path, more)
    entries = [entry_of(spec, name, STUDY, Sweeps(1, tuple(final_rows(name, {11: 0.5, 12: 0.6, 13: 0.7})), None))
               for name in spec.entrants]  # fmt: skip
    read = Reader(render_page(result_of(spec, entries, name="duel", folder="-"), spec, {}, ["command"]))
    assert read.dots == 13 * 2 * 3


@pytest.mark.parametrize(("num_traversals", "rows"), [(0, 10), (2, 10), (14, 10), (16, 8), (34, 4), (140, 3)])
def test_the_more_traversals_a_report_has_the_fewer_units_each_of_them_shows(num_traversals: int, rows: int) -> None:
    assert num_rows(num_traversals) == rows
