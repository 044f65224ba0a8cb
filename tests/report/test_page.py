"""The report of a run: what it says, that it stands alone, and that nothing in it can break out of its text."""

from __future__ import annotations

import base64
import copy
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from raydis.build import build_method
from raydis.checkpoint.migrate import migrate_metrics
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.methods.contract import Diagnosis
from raydis.methods.vae import BetaVae
from raydis.report.page import render_report, write_report
from raydis.report.plots import draw_anchors, draw_curve
from raydis.report.template import render

PICTURES = {"PNG": "png", "WEBP": "webp"}  # Pillow's names of formats -> those of media types


class Reader(HTMLParser):
    """Texts and pictures of a page; an unclosed tag is an error."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                head, _, data = (value or "").partition(",")
                picture = Image.open(io.BytesIO(base64.b64decode(data)))
                assert head == f"data:image/{PICTURES[picture.format]};base64"  # nothing is fetched from elsewhere
                self.pictures.append(picture)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def editor(finished: Editor) -> Editor:
    """A tiny run with a learning curve and fitted anchors."""
    return finished


@pytest.fixture(scope="module")
def page(editor: Editor, dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of this run, as it was written."""
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_report(editor, dataset, path, steps=2)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_a_page_stands_alone_and_shows_scores_curve_units_and_anchors(editor: Editor, page: str) -> None:
    read = Reader(page)
    text = " ".join(read.texts)
    for words in (
        "shapes3d_procedural, seed 0",
        "dyga_sd ·",
        "search protocol, estimator tree",
        "MIG",
        "Units and their anchors",
    ):
        assert words in text
    scores = editor.metrics["scores"]
    assert f"{scores['values']['factor_vae']:.3f} ± {scores['spread']['factor_vae']:.3f}" in read.texts
    assert "± is the standard deviation over 3 draws of the metrics" in text
    curve, *traversal, anchors = read.pictures
    assert min(curve.width, anchors.width) > 200
    assert [picture.size for picture in traversal] == [(16, 16)] * editor.num_units * 8


def test_a_plot_is_clear_where_nothing_is_drawn_so_that_it_suits_dark_mode(page: str) -> None:
    pictures = Reader(page).pictures
    for plot in (pictures[0], pictures[-1]):
        corner = plot.convert("RGBA").getpixel((0, 0))
        assert isinstance(corner, tuple)
        assert corner[3] == 0


def test_the_matrix_shows_each_units_shares_and_how_much_it_changes(editor: Editor, page: str) -> None:
    found = editor.metrics["information"]
    for unit, (shares, effect) in enumerate(zip(found["share"], found["effect"], strict=True)):
        (row,) = re.findall(rf"<tr><th>unit {unit}<small>[^<]*</small></th><td class=.cell(.*?)</tr>", page)
        assert re.findall(r">(\d+)</td>", row) == [f"{100 * share:.0f}" for share in shares]
        assert row.endswith(f"<td>{effect:.1f}</td>")


def test_a_run_without_scores_and_anchors_has_a_page_that_says_so(editor: Editor, dataset: FactorDataset) -> None:
    metrics = {"psnr": 21.25, "ssim": 0.5, "frechet_distance": None}
    bare = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    page = Reader(render_report(bare, dataset, steps=2))
    assert "This checkpoint was not scored." in page.texts
    assert "Images drawn again from their codes: PSNR 21.25 dB, SSIM 0.500." in page.texts
    assert "Which unit tells which factor" in page.texts  # measured anew, as the data set is at hand
    assert "Units and their anchors" not in page.texts


def test_a_page_of_an_older_checkpoint_measures_what_its_units_tell_and_contradicts_itself_nowhere(
    editor: Editor, dataset: FactorDataset
) -> None:
    """Older checkpoints hold a factor a unit by another definition, which is no longer shown."""
    metrics = copy.deepcopy(editor.metrics)
    del metrics["information"]
    assert dataset.space is not None
    wrong = {"factor": "orientation", "num_levels": 77, "factor_share": 0.125, "component_share": 0.25}
    anchoring = metrics.pop("diagnosis")["details"]
    metrics["anchoring"] = {**anchoring, "units": [unit | wrong for unit in anchoring["units"]]}
    metrics = migrate_metrics(metrics, 1)
    older = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    assert {label.kind for label in older.labels} == {"unknown"}
    page = render_report(older, dataset, steps=2)
    for unit, label in enumerate(editor.labels):
        (row,) = re.findall(rf"<tr><td>{unit}</td>(.*?)</tr>", page)
        assert row.startswith(f"<td>{label}</td>")
        assert ("<td>77</td>" in row) == bool(label.factors and label.factors[0][0] == "orientation")


def test_the_page_of_a_model_that_draws_without_noise_speaks_of_none(
    editor: Editor, dataset: FactorDataset, page: str
) -> None:
    said = "The other units and the starting noise stay the same."
    assert said in " ".join(page.split())
    over = {"preset": "tiny", "first_stage": {"kind": "pixel"}, "method": {"kind": "beta_vae", "num_units": 3}}
    config = RunConfig.model_validate(expand(over))
    method = build_method(config, 3)
    plain = Editor(method, config, editor.manifest, {}, image_shape=editor.image_shape)
    text = " ".join(render_report(plain, dataset).split())
    assert "The other units stay the same." in text
    assert said not in text


def test_a_page_of_format_version_1_has_the_table_that_it_has_today(
    editor: Editor, dataset: FactorDataset, page: str
) -> None:
    metrics = copy.deepcopy(editor.metrics)
    anchoring = metrics.pop("diagnosis")["details"]
    units = [{"num_gaussians": unit.pop("num_components"), **unit} for unit in anchoring["units"]]
    metrics = migrate_metrics(metrics | {"anchoring": anchoring | {"units": units}}, 1)
    older = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    assert render_report(older, dataset, steps=2) == page


def test_any_method_shows_what_it_measured_inside_itself(
    tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the run to the page, by words that only the method knows, and without tokens."""
    found = Diagnosis(
        title="Springs & their <tension>",
        columns=("wound", "sort"),
        rows=((0.25, "left"), (None, "right"), (3, "<script>")),
        note="Wound: in turns.",
    )
    monkeypatch.setattr(BetaVae, "diagnose", lambda *_: found)
    method = {"kind": "beta_vae", "num_units": 3, "hidden_dim": 16}
    config = tiny(first_stage={"kind": "pixel"}, method=method, train={"num_images": 32})
    *_, last = run_session(Training(config, dataset, device=torch.device("cpu")), tmp_path)
    assert last.checkpoint is not None
    toy = Editor.open(last.checkpoint)
    assert toy.metrics["diagnosis"] == found.to_dict()
    page = render_report(toy, dataset)
    texts = Reader(page).texts
    assert {found.title, found.note, "wound", "sort"} <= set(texts)
    assert "<script" not in page
    assert "Gaussian" not in page
    assert "tokens and anchors" not in page
    cells = ("<td>0.25</td><td>left</td>", "<td>–</td><td>right</td>", "<td>3</td><td>&lt;script&gt;</td>")
    for unit, (label, shown) in enumerate(zip(toy.labels, cells, strict=True)):
        assert str(label)
        assert f"<tr><td>{unit}</td><td>{label}</td>{shown}</tr>" in page


def test_without_factors_a_page_names_no_unit(editor: Editor, dataset: FactorDataset) -> None:
    unlabelled = ArrayDataset(dataset.name, dataset.images(np.arange(len(dataset))), None, fingerprint="f")
    bare = Editor(editor.method, editor.config, editor.manifest, {}, image_shape=editor.image_shape)
    page = Reader(render_report(bare, unlabelled, steps=2))
    assert "Traversal" in page.texts
    assert not any("tells" in text for text in page.texts)


def test_scores_from_before_spreads_were_kept_are_shown_without(editor: Editor, dataset: FactorDataset) -> None:
    scores = {name: value for name, value in editor.metrics["scores"].items() if name not in ("spread", "num_draws")}
    metrics = {"scores": scores, "information": editor.metrics["information"], "factor_names": editor.factor_names}
    old = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    page = render_report(old, dataset, steps=2)
    assert f"{scores['values']['factor_vae']:.3f}" in Reader(page).texts
    assert "±" not in page


NASTY = """<script>alert(1)</script> "double" 'single' {{ page.settings }} {% raw %} &amp; $x_$"""


def test_a_reason_is_shown_as_plain_text_whatever_is_in_it(editor: Editor, dataset: FactorDataset) -> None:
    invalid = editor.metrics["scores"] | {"status": "invalid", "values": {}, "details": {}, "reason": NASTY}
    bad = Editor(editor.method, editor.config, editor.manifest, {"scores": invalid}, image_shape=editor.image_shape)
    page = render_report(bad, dataset, steps=2)
    assert "<script" not in page
    assert any(NASTY in text for text in Reader(page).texts)


def test_names_of_factors_and_of_the_data_set_are_shown_as_plain_text(editor: Editor, dataset: FactorDataset) -> None:
    """In headings and labels of the page, and in the titles of the panels, which matplotlib must not typeset."""
    metrics = editor.metrics | {
        "factor_names": [f"{NASTY} {number}" for number in range(6)],
        "information": {
            "share": [[0.9, *[0.0] * 5]] * editor.num_units,
            "chance": [0.01] * 6,
            "effect": [5.0] * editor.num_units,
        },
    }
    manifest = editor.manifest.model_copy(update={"data_name": NASTY})
    named = Editor(editor.method, editor.config, manifest, metrics, image_shape=editor.image_shape)
    page = render_report(named, dataset, steps=2)
    assert "<script" not in page
    texts = Reader(page).texts
    plain = NASTY.replace("_", " ")  # a factor's name is written as words
    assert f"raydis · {NASTY}" in texts
    assert f"{NASTY}, seed 0" in texts
    assert {f"{plain} {number}" for number in range(6)} <= set(texts)
    assert texts.count(f"{plain} 0 90 %") == 3 * editor.num_units  # matrix, traversal, table of anchors


def test_a_template_that_asks_for_what_it_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'page' is undefined"):
        render("run.html")


@pytest.mark.parametrize("unit_dim", [1, 2, 5])
def test_anchors_are_drawn_for_units_of_any_width_and_for_units_without(unit_dim: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(30, 5, unit_dim))
    anchors = [tokens[:k, unit] for unit, k in enumerate((2, 3, 0, 1, 4))]
    plot = draw_anchors(tokens, tokens, np.zeros((30, 5), int), anchors, [f"unit {unit}" for unit in range(5)])
    assert Image.open(io.BytesIO(plot)).size[0] > 800


def test_a_curve_leaves_out_what_could_not_be_scored() -> None:
    points = [{"images_seen": n, "scores": {"mig": value}} for n, value in ((10, 0.1), (20, None), (30, 0.3))]
    assert draw_curve(points, {"mig": "MIG"}) == draw_curve([points[0], points[2]], {"mig": "MIG"})
