"""The report of a run: what it says, that it stands alone, and that nothing in it can break out of its text."""

from __future__ import annotations

import base64
import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.report.page import render_report, write_report
from raydis.report.plots import draw_anchors, draw_curve


class Reader(HTMLParser):
    """Texts and pictures of a page; an unclosed tag is an error."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def dataset() -> FactorDataset:
    return open_dataset(RunConfig.model_validate(expand({"preset": "tiny"})).data)


@pytest.fixture(scope="module")
def editor(dataset: FactorDataset, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    """A tiny run with a learning curve and fitted anchors."""
    tree = {"preset": "tiny", "train": {"num_images": 192}, "evaluation": {"rungs": [64]}}
    config = RunConfig.model_validate(expand(tree))
    training = Training(config, dataset, device=torch.device("cpu"))
    folders = [report.checkpoint for report in run_session(training, tmp_path_factory.mktemp("run"))]
    assert folders[-1] is not None
    return Editor.open(folders[-1])


def test_a_page_stands_alone_and_shows_scores_curve_units_and_anchors(
    editor: Editor, dataset: FactorDataset, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(editor, dataset, path, num_steps=2)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    page = Reader(path.read_text())
    text = " ".join(page.texts)
    for words in ("shapes3d_procedural, seed 0", "search protocol, estimator tree", "MIG", "Units and their anchors"):
        assert words in text
    scores = editor.metrics["scores"]
    assert f"{scores['values']['factor_vae']:.3f} ± {scores['spread']['factor_vae']:.3f}" in page.texts
    assert "± is the standard deviation over 3 draws of the metrics" in text
    assert len(page.sources) == 4  # curve, information, traversal, anchors
    for source in page.sources:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"  # nothing is fetched from elsewhere
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[0] > 200


def test_a_run_without_scores_and_anchors_has_a_page_that_says_so(editor: Editor, dataset: FactorDataset) -> None:
    bare = Editor(editor.method, editor.config, editor.manifest, {}, image_shape=editor.image_shape)
    page = Reader(render_report(bare, dataset, num_steps=2))
    assert "This checkpoint was not scored." in page.texts
    assert len(page.sources) == 2  # what the units tell is measured anew, as the data set is at hand


def test_a_page_of_an_older_checkpoint_measures_what_its_units_tell_and_contradicts_itself_nowhere(
    editor: Editor, dataset: FactorDataset
) -> None:
    """Older checkpoints hold a factor a unit by another definition, which is no longer shown."""
    metrics = copy.deepcopy(editor.metrics)
    del metrics["information"]
    assert dataset.space is not None
    wrong = {"factor": "orientation", "num_levels": 77, "factor_share": 0.125, "component_share": 0.25}
    metrics["anchoring"]["units"] = [unit | wrong for unit in metrics["anchoring"]["units"]]
    older = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    assert {label.kind for label in older.labels} == {"unknown"}
    page = render_report(older, dataset, num_steps=2)
    for unit, label in enumerate(editor.labels):
        (row,) = re.findall(rf"<tr><td>{unit}</td>(.*?)</tr>", page)
        assert row.startswith(f"<td>{label}</td>")
        assert ("<td>77</td>" in row) == bool(label.factors and label.factors[0][0] == "orientation")


def test_without_factors_a_page_names_no_unit(editor: Editor, dataset: FactorDataset) -> None:
    unlabelled = ArrayDataset(dataset.name, dataset.images(np.arange(len(dataset))), None, fingerprint="f")
    bare = Editor(editor.method, editor.config, editor.manifest, {}, image_shape=editor.image_shape)
    page = Reader(render_report(bare, unlabelled, num_steps=2))
    assert len(page.sources) == 1
    assert not any("tells" in text for text in page.texts)


def test_scores_from_before_spreads_were_kept_are_shown_without(editor: Editor, dataset: FactorDataset) -> None:
    scores = {name: value for name, value in editor.metrics["scores"].items() if name not in ("spread", "num_draws")}
    metrics = editor.metrics | {"scores": scores}
    old = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
    page = render_report(old, dataset, num_steps=2)
    assert f"{scores['values']['factor_vae']:.3f}" in Reader(page).texts
    assert "±" not in page


def test_scores_that_are_invalid_are_named_with_their_reason_as_plain_text(
    editor: Editor, dataset: FactorDataset
) -> None:
    invalid = editor.metrics["scores"] | {
        "status": "invalid",
        "reason": "codes <script>alert(1)</script> collapsed",
    }
    bad = Editor(editor.method, editor.config, editor.manifest, {"scores": invalid}, image_shape=editor.image_shape)
    page = render_report(bad, dataset, num_steps=2)
    assert not re.search("<script", page)
    assert any("codes <script>alert(1)</script> collapsed" in text for text in Reader(page).texts)


@pytest.mark.parametrize("unit_dim", [1, 2, 5])
def test_anchors_are_drawn_for_units_of_any_width_and_for_units_without(unit_dim: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(30, 5, unit_dim))
    anchors = [tokens[:k, unit] for unit, k in enumerate((2, 3, 0, 1, 4))]
    png = draw_anchors(tokens, tokens, np.zeros((30, 5), int), anchors, [f"unit {unit}" for unit in range(5)])
    assert Image.open(io.BytesIO(png)).size[0] > 800


def test_a_curve_leaves_out_what_could_not_be_scored() -> None:
    points = [{"images_seen": n, "scores": {"mig": value}} for n, value in ((10, 0.1), (20, None), (30, 0.3))]
    assert draw_curve(points, {"mig": "MIG"}) == draw_curve([points[0], points[2]], {"mig": "MIG"})
