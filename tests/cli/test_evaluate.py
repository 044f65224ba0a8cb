"""`python -m raydis evaluate`: what it reads, prints and writes, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raydis.cli import main
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import DATA, METRICS, OUTPUT, REGISTRY, USAGE
from raydis.evaluation.formats import FORMATS, SUFFIXES
from raydis.metrics import table
from tests.markdown import FENCE, read_pages

FACTORS = np.tile(np.indices((4, 3, 3)).reshape(3, -1).T, (4, 1))
CODES = FACTORS + 0.2 * np.random.default_rng(0).normal(size=FACTORS.shape)
NAMES = ["wall_hue", "shape", "size"]
QUICK = ("--estimator", "tree", "--num-draws", "3", "--num-jobs", "1")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("codes.npy")` does what `python -m raydis evaluate codes.npy` does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["raydis", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tables, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    np.save("codes.npy", CODES)
    np.save("other.npy", CODES[:, ::-1] * 2)
    np.save("factors.npy", FACTORS)
    np.savez("all.npz", codes=CODES, factors=FACTORS, factor_names=NAMES)
    pd.DataFrame(np.column_stack([CODES, FACTORS]), columns=["z0", "z1", "z2", *NAMES]).to_csv("all.csv", index=False)
    frame = pd.read_csv("all.csv")
    frame.assign(shape=frame["shape"].mask(frame.index == 3)).to_csv("gaps.csv", index=False)
    frame.assign(wall_hue=pd.to_datetime(frame["wall_hue"], unit="D")).to_parquet("days.parquet")
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny run after one step."""
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": {"num_images": 32}}))
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    *_, report = run_session(training, tmp_path_factory.mktemp("run"))
    assert report.checkpoint is not None
    return Path(report.checkpoint)


def printed(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_table_is_printed_and_files_are_written(run: Run, here: Path) -> None:
    files = [argument for suffix in SUFFIXES for argument in ("-o", f"scores{suffix}")]
    outcome = run("codes.npy", "--factors", "factors.npy", *QUICK, *files, "--picture", "picture.png")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert "DCI disentanglement" in outcome.out
    assert "computing" in outcome.err
    assert (here / "scores.txt").read_text() == outcome.out
    assert json.loads((here / "scores.json").read_text())["num_samples"] == len(CODES)
    assert Image.open(io.BytesIO((here / "picture.png").read_bytes())).width > 400
    assert all(f"wrote scores{suffix}" in outcome.err for suffix in SUFFIXES)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_printed_has_the_format_that_was_asked_for(run: Run, here: Path, name: str) -> None:
    suffix = next(suffix for suffix, known in SUFFIXES.items() if known == name)
    outcome = run("all.npz", "--format", name, "-o", f"same{suffix}", "--metrics", "mig", *QUICK)
    assert outcome.code == 0
    assert outcome.out == (here / f"same{suffix}").read_text()


def test_all_kinds_of_files_give_the_same_scores(run: Run, here: Path) -> None:
    options = ("--metrics", "mig", "--format", "json", *QUICK)
    ways = [
        ("codes.npy", "--factors", "factors.npy", "--factor-names", ",".join(NAMES)),
        ("all.npz",),
        ("all.npz:codes", "--factors", "all.npz"),
        ("codes.npy", "--factors", "all.csv", "--factor-names", ", ".join(NAMES)),
        ("all.csv", "--factor-names", ",".join(NAMES)),
    ]
    found = [printed(run(*way, *options)) for way in ways]
    assert {tuple(each["factor_names"]) for each in found} == {tuple(NAMES)}
    for each in found:
        assert each["estimates"] == found[0]["estimates"]
    assert found[-1]["runs"][0]["unit_names"] == ["z0", "z1", "z2"]


def test_several_files_are_runs_of_these_names(run: Run, here: Path) -> None:
    options = ("--metrics", "mig", "--format", "json", "--num-jobs", "1")
    found = printed(run("codes.npy", "other.npy", "--factors", "factors.npy", *options))
    assert [each["name"] for each in found["runs"]] == ["codes.npy", "other.npy"]
    assert (found["intervals"], found["num_draws"]) == ("runs", 1)


def test_a_file_name_that_is_no_text_is_written_with_escapes(run: Run, here: Path) -> None:
    name = os.fsdecode(b"bad\xff.npy")
    np.save(name, CODES)
    outcome = run(name, "other.npy", "--factors", "factors.npy", "--metrics", "mig", "-o", "a.csv", "-o", "a.md")
    assert outcome.code == 0
    assert "bad\\udcff.npy" in Path("a.csv").read_text()


def test_udr_of_several_files_needs_no_factors(run: Run, here: Path) -> None:
    outcome = run("codes.npy", "other.npy", "--metrics", "udr", "-o", "udr.csv", "--picture", "udr.png")
    assert outcome.code == 0, outcome.err
    assert "2 runs, 144 samples, 3 units, no factors" in outcome.out
    rows = pd.read_csv("udr.csv")
    assert rows["run"].tolist() == ["codes.npy", "other.npy", "mean"]
    assert rows["value"].min() > 0.8
    refused(run("codes.npy", "--metrics", "udr"), "the only one", code=METRICS)


def test_independent_components_are_scored_where_it_is_asked_for(run: Run, here: Path) -> None:
    np.save("mixed.npy", CODES @ np.array([[2.0, -1.0, 2.0], [2.0, 2.0, -1.0], [-1.0, 2.0, 2.0]]))
    options = ("--factors", "factors.npy", "--metrics", "mig", "--num-draws", "1", "--format", "json")
    before, after = (printed(run("mixed.npy", *more, *options)) for more in ((), ("--ica",)))
    assert after["estimates"][0]["value"] > before["estimates"][0]["value"] + 0.3
    assert after["runs"][0]["unit_names"] == ["component 0", "component 1", "component 2"]


def test_notes_about_columns_are_shown(run: Run, here: Path) -> None:
    frame = pd.read_csv("all.csv").assign(file="a.png", shape=np.array(["cube", "oval", "ball"])[FACTORS[:, 1]])
    frame.to_csv("notes.csv")
    outcome = run("notes.csv", "--factor-names", ",".join(NAMES), "--metrics", "mig", *QUICK)
    for note in ("numbers the rows", "left out: file", "factor shape is text"):
        assert note in " ".join(outcome.out.split())


def test_a_checkpoint_is_scored_on_its_own_data(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    outcome = run(checkpoint, "--metrics", "mig", "--format", "json", *QUICK)
    found = printed(outcome)
    stored = json.loads((checkpoint / "metrics.json").read_text())["scores"]
    assert found["num_samples"] == stored["num_images"]
    assert found["factor_names"] == json.loads((checkpoint / "metrics.json").read_text())["factor_names"]
    if stored["status"] == "valid":
        assert found["estimates"][0]["value"] == pytest.approx(stored["values"]["mig"])
    assert "encoding" in outcome.err


def test_every_metric_scores_a_checkpoint_whose_units_are_vectors_of_unequal_width(run: Run, tmp_path: Path) -> None:
    method = {"kind": "cs_dismo", "content_dim": 6, "style_dim": 3, "hidden_dim": 16, "channels": [8, 8, 8]}
    sections = {"preset": "tiny", "first_stage": {"kind": "pixel"}, "method": method, "train": {"num_images": 32}}
    evaluation = {"metrics": ["grouped_dci"], "estimator": "tree"}
    config = RunConfig.model_validate(expand({**sections, "evaluation": evaluation}))
    *_, report = run_session(Training(config, open_dataset(config.data), device=torch.device("cpu")), tmp_path)
    assert report.checkpoint is not None
    assert report.scores is not None
    options = ("--estimator", "tree", "--num-draws", "1", "--num-jobs", "1", "--format", "json")
    found = printed(run(report.checkpoint, "--metrics", "all", *options))
    values = {each["name"]: each["value"] for each in found["estimates"]}
    wanted = {number.name for name, metric in table.METRICS.items() if name != "tad" for number in metric.numbers}
    assert set(values) == wanted  # TAD is of binary factors, and UDR of several runs
    for each in found["estimates"]:  # the scalars of so short a run vary too little for FactorVAE
        assert (each["value"] is None) == (each["name"] == "factor_vae") == ("reason" in each and bool(each["reason"]))
    assert {name: values[name] for name in report.scores.values} == report.scores.values


def test_runs_on_pictures_without_factors_are_compared_by_udr(run: Run, here: Path) -> None:
    (here / "pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(256, size=(20, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(here / "pictures" / f"{number}.png")
    folders = []
    for seed in (0, 1):
        method = {"kind": "beta_vae", "num_units": 4, "hidden_dim": 16}
        data = {"name": "image_folder", "path": str(here / "pictures"), "image_size": 16, "levels": {}}
        sections = {"preset": "tiny", "first_stage": {"kind": "pixel"}, "method": method, "data": data, "seed": seed}
        config = RunConfig.model_validate(expand({**sections, "train": {"num_images": 32}}))
        (here / f"run-{seed}").mkdir()
        training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
        *_, report = run_session(training, here / f"run-{seed}")
        folders.append(report.checkpoint)
    found = printed(run(*folders, "--metrics", "udr", "--format", "json"))
    assert (found["num_samples"], found["factor_names"], len(found["runs"])) == (20, [], 2)
    refused(run(*folders), "has no factors", "--metrics udr of several runs", code=METRICS)


def refused(outcome: Outcome, *words: str, code: int) -> None:
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert outcome.err.startswith("raydis: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("codes.npy",), ["holds codes alone", "--factors FILE"], USAGE),
        (("absent.npy", "--factors", "factors.npy"), ["there is no file absent.npy"], DATA),
        (("all.npz", "--format", "html"), ["--format html", "markdown"], USAGE),
        (("all.npz", "--protocol", "publish"), ["--protocol publish", "search, published"], USAGE),
        (("all.npz", "--metrics", "dcl"), ["no metric is named dcl"], METRICS),
        (("all.npz", "-o", "a.html"), ["a.html", ".tex"], USAGE),
        (("all.npz", "--picture", "a.gif"), ["a.gif", ".svg"], USAGE),
        (("all.npz", "-o", "all.npz/a.csv"), ["cannot write"], OUTPUT),
        (("codes.npy", "quickstart@best"), ["cannot be scored together"], USAGE),
        (("codes.npy", "codes.npy"), ["given twice"], USAGE),
        (("quickstart@best", "--factors", "factors.npy"), ["its own data set"], USAGE),
        (("quickstart@best",), ["quickstart"], REGISTRY),
        (("codes.npy", "--factors", "codes.npy"), ["levels are integers"], METRICS),
        (("codes.npy", "--factors", "all.npz:shapes"), ["no array shapes", "factors (144, 3)"], DATA),
        (("all.csv", "--factor-names", "hue"), ["no column hue"], DATA),
        (("gaps.csv", "--factor-names", "shape,size"), ["factor shape misses 1 of 144 values"], METRICS),
        (("days.parquet", "--factor-names", "wall_hue,shape"), ["factor wall_hue of type datetime64"], METRICS),
        (("all.csv", "--factor-names", "shape,size", "-o", "./all.csv"), ["all.csv is a file to read"], USAGE),
        (("codes.npy", "--factors", "all.csv", "-o", "all.csv"), ["all.csv is a file to read"], USAGE),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    run: Run, here: Path, arguments: tuple[str, ...], words: list[str], code: int
) -> None:
    refused(run(*arguments), *words, code=code)


def test_runs_with_different_factors_are_refused(run: Run, here: Path) -> None:
    np.savez("b.npz", codes=CODES, factors=FACTORS[::-1])
    refused(run("all.npz", "b.npz"), "different factors", code=USAGE)


def test_the_section_of_the_page_works(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = read_pages()["raydis/metrics/README.md"].text.partition("## Score any representation")[2]
    blocks = dict(FENCE.findall(section.partition("\n## ")[0]))
    command = blocks["bash"].strip()
    exec(compile(blocks["python"], "page", "exec"), {})
    outcome = run(*shlex.split(command)[4:], *QUICK[:2])  # the walk of the pages runs it as it stands
    assert outcome.code == 0
    assert "| FactorVAE score" in Path("scores.md").read_text()
    assert Image.open(io.BytesIO(Path("importance.png").read_bytes())).width > 400
