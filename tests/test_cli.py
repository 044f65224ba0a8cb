"""`python -m raydis`: what each verb does, and that an error of ours is one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.cli import main
from raydis.cli.pictures import _pick_images
from raydis.cli.runs import _print_report
from raydis.config import DataConfig, PixelStage, RunConfig
from raydis.config.presets import PRESETS, expand
from raydis.data import open_dataset
from raydis.editor.editor import Editor
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import CHECKPOINT, DATA, OUTPUT, REGISTRY, RESOURCES, STORAGE, USAGE
from raydis.report.grids import draw_swaps, draw_traversal
from raydis.train import trainer
from tests.records import scores_of

ROOT = Path(__file__).resolve().parents[1]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("train", "--preset", "tiny")` does what `python -m raydis train --preset tiny` does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["raydis", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), printed.out, printed.err)

    return run


def refused(outcome: Outcome, *words: str, code: int = USAGE) -> None:
    """An exit code, and all the words in one line on standard error."""
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("raydis: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny run after one step."""
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": {"num_images": 32}}))
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    *_, report = run_session(training, tmp_path_factory.mktemp("run"))
    assert report.checkpoint is not None
    return report.checkpoint


@pytest.fixture(scope="module")
def later(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights after more training, as their manifest says."""
    folder = tmp_path_factory.mktemp("later") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    manifest = open_checkpoint(folder).manifest.model_copy(update={"images_seen": 64})
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


# ---- train


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked Ray Train for, instead of asking."""
    asked: dict[str, Any] = {}

    def record(config: RunConfig, **options: Any) -> trainer.TrainResult:
        on_report = options.pop("on_report")
        on_report(RunRecord("running", images_seen=32, num_images=64, loss=0.25))
        last = RunRecord("valid", images_seen=32, num_images=64, loss=0.25, scores=scores_of(factor_vae=0.5))
        on_report(last)  # the scores of the same images
        asked.update(config=config, **options)
        return trainer.TrainResult("runs/train/name/checkpoint", last)

    monkeypatch.setattr(trainer, "run", record)
    return asked


def test_train_runs_a_preset_with_overrides_and_tells_where_the_checkpoint_is(run: Run, asked: dict[str, Any]) -> None:
    outcome = run("train", "--preset", "tiny", "--set", "train.num_images=64", "--set", "method.anchors.mode=off")
    assert outcome.code == 0
    assert asked["config"] == RunConfig.model_validate(
        expand({"preset": "tiny", "train": {"num_images": 64}, "method": {"anchors": {"mode": "off"}}})
    )
    assert (asked["storage"], asked["name"]) == ("runs", None)
    where, scores = outcome.out.splitlines()
    assert where == "checkpoint  runs/train/name/checkpoint"
    expected = {name: value for name, value in scores_of(factor_vae=0.5).to_dict().items() if name != "details"}
    assert json.loads(scores) == expected
    assert outcome.err == "32 of 64 images  loss 0.2500\n"


def test_a_report_of_a_method_without_a_loss_tells_its_images_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _print_report(RunRecord("running", images_seen=32, num_images=64))
    assert capsys.readouterr().err == "32 of 64 images\n"


def test_train_in_a_ray_job_writes_where_ray_does_not_delete(
    run: Run, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run("train", "--preset", "tiny").code == 0
    assert asked["storage"] == str(Path.home() / "runs")


def test_train_reads_a_file_and_the_command_line_wins(run: Run, asked: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: small\nseed: 1\ntrain: {learning_rate: 1e-4, batch_size: 16}\n")
    outcome = run(
        *("train", path, "--preset", "tiny", "--set", "train.batch_size=8"),
        *("--storage", "s3://bucket/prefix", "--name", "mine"),
    )
    assert outcome.code == 0
    expected = {"preset": "tiny", "seed": 1, "train": {"learning_rate": 1e-4, "batch_size": 8}}
    assert asked["config"] == RunConfig.model_validate(expand(expected))
    assert (asked["storage"], asked["name"]) == ("s3://bucket/prefix", "mine")


def test_another_variant_of_a_section_starts_from_its_own_defaults(run: Run, asked: dict[str, Any]) -> None:
    assert run("train", "--preset", "small", "--set", "data.name=dsprites_procedural").code == 0
    assert asked["config"].data == DataConfig(name="dsprites_procedural")  # none of the other set's levels
    sizes = ("--set", "method.unet.attention_sizes=[32]", "--set", "method.unet.skip_dropout_sizes=[64]")
    assert run("train", "--preset", "small", "--set", "first_stage.kind=pixel", *sizes).code == 0
    assert asked["config"].first_stage == PixelStage()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "smal"], ["unknown preset 'smal'", "reference, small, tiny"]),
        (
            ["--preset", "tiny", "--set", "train.num_image=3"],
            ["train.num_image: unknown key; did you mean num_images?"],
        ),
        (
            ["--preset", "tiny", "--set", "train.batch_size=many"],
            ["train.batch_size: found 'many', expected an integer"],
        ),
        (["--preset", "tiny", "--set", "seed"], ["--set seed: expected KEY=VALUE"]),
        ([], ["nothing to train", "--preset small"]),
        (["absent.yaml"], ["cannot read absent.yaml: No such file"]),
        (["/dev/null"], ["nothing to train: /dev/null is empty", "--preset small"]),
        (["/tmp"], ["cannot read /tmp: Is a directory"]),
        ([sys.executable], ["cannot read", "not UTF-8 text"]),
    ],
)
def test_train_refuses_what_it_does_not_understand_before_ray_starts(
    run: Run, asked: dict[str, Any], arguments: list[str], words: list[str]
) -> None:
    refused(run("train", *arguments), *words)
    assert asked == {}


def test_a_gpu_that_the_cluster_lacks_is_told_with_what_it_has(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer, "ray_cluster", contextlib.nullcontext)
    monkeypatch.setattr(trainer, "cluster_nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(trainer, "cluster_grows", lambda: False)
    outcome = run("train", "--preset", "tiny", "--set", "compute.device=cuda", "--storage", tmp_path)
    refused(
        outcome,
        "a run needs 1 worker(s) of 1 CPUs and 1 GPUs",
        "2 CPUs and 0 GPUs",
        "compute.device=cpu",
        code=RESOURCES,
    )
    assert list(tmp_path.iterdir()) == []


def test_profile_prints_where_a_step_goes_and_trains_nothing(run: Run, asked: dict[str, Any]) -> None:
    outcome = run("train", "--preset", "tiny", "--profile", "--set", "compute.device=cpu")
    assert (outcome.code, asked) == (0, {})
    lines = outcome.out.splitlines()
    assert lines[0].startswith("one step: 32 images, fp32, 1 CPU thread")
    assert [line.split()[0] for line in lines[2:6]] == ["data", "forward", "backward", "optimiser"]
    assert lines[-5].startswith("predicted floor ")
    assert lines[-4].split() == ["bound", "ms", "step/bound"]
    assert "timing a few steps" in outcome.err


# ---- look at a checkpoint


def test_traverse_writes_a_grid_of_units_by_values(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "walk.png"
    outcome = run("traverse", checkpoint, "-o", path, "--num-values", 3, "--steps", 2, "--seed", 4)
    assert outcome == (0, f"wrote {path}\n", "")
    editor = Editor.open(checkpoint)
    start = open_dataset(editor.config.data).images(np.random.default_rng(7).choice(324, size=1, replace=False))[0]
    with Image.open(path) as picture:
        assert picture.height == 8 + 26 + 20 + 4 * 83 + 8
        assert picture.width > 4 * 83
        expected = draw_traversal(editor, start, num_values=3, seed=4, steps=2)
        assert (np.asarray(picture) == np.asarray(expected)).all()


def test_swap_draws_two_given_files(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    editor, path = Editor.open(checkpoint), tmp_path / "swap.png"
    images = open_dataset(editor.config.data).images(np.array([3, 300]))
    for name, image in zip(("a.png", "b.png"), images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    files = ("--source", tmp_path / "a.png", "--target", tmp_path / "b.png")
    assert run("swap", checkpoint, "-o", path, *files, "--steps", 2).code == 0
    with Image.open(path) as picture:
        lines = 1 + max(label.lines(10).count("\n") + 1 for label in editor.labels)
        assert picture.height == 8 + 26 + (4 + 16 * lines) + 67 + 8
        assert (np.asarray(picture) == np.asarray(draw_swaps(editor, images[:1], images[1:], steps=2))).all()


def test_traverse_and_swap_take_a_sampler_and_keep_details(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    editor, path = Editor.open(checkpoint), tmp_path / "a.png"
    image = open_dataset(editor.config.data).images(np.array([300]))[0]
    Image.fromarray(image).save(tmp_path / "image.png")
    options = ("-o", path, "--steps", 2)
    files = ("--source", tmp_path / "image.png", "--target", tmp_path / "image.png")
    for flags, wanted in (
        (("--sampler", "dpmpp_2m_karras"), {"sampler": "dpmpp_2m_karras"}),
        (("--keep-details",), {"keep_details": True}),
    ):
        assert run("traverse", checkpoint, "--image", tmp_path / "image.png", *options, *flags).code == 0
        with Image.open(path) as picture:
            assert (np.asarray(picture) == np.asarray(draw_traversal(editor, image, steps=2, **wanted))).all()
        assert run("swap", checkpoint, *files, *options, *flags).code == 0
        with Image.open(path) as picture:
            expected = draw_swaps(editor, image[None], image[None], steps=2, **wanted)
            assert (np.asarray(picture) == np.asarray(expected)).all()


@pytest.mark.parametrize("verb", ["traverse", "swap"])
def test_a_sampler_that_there_is_not_or_that_cannot_keep_details_is_told(
    run: Run, checkpoint: Path, tmp_path: Path, verb: str
) -> None:
    command = (verb, checkpoint, "-o", tmp_path / "a.png", "--steps", 2)
    refused(run(*command, "--sampler", "euler"), "unknown sampler euler: use ddim, dpmpp_2m, dpmpp_2m_karras, unipc")
    refused(run(*command, "--sampler", "unipc", "--keep-details"), "sampler=unipc cannot keep details")


def test_a_grey_model_takes_an_image_file(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "a.png")
    picked = _pick_images(SimpleNamespace(image_shape=(16, 16, 1)), [tmp_path / "a.png"], 1)
    assert picked.shape == (1, 16, 16, 1)
    assert (picked == 76).all()


def test_swap_takes_pairs_of_the_data_set_and_a_published_model(
    run: Run, checkpoint: Path, published: Path, tmp_path: Path
) -> None:
    path = tmp_path / "swap.png"
    assert run("swap", "mine@best", "--storage", published, "-o", path, "--num-pairs", 2, "--steps", 1).code == 0
    with Image.open(path) as picture:
        lines = 1 + max(label.lines(10).count("\n") + 1 for label in Editor.open(checkpoint).labels)
        assert picture.height == 8 + 26 + (4 + 16 * lines) + 2 * 67 + 8
        assert picture.width > 6 * 67


def test_image_writes_one_image_of_the_data_unchanged(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert run("image", checkpoint, "-o", path, "--index", 300) == (0, f"wrote {path}\n", "")
    expected = open_dataset(Editor.open(checkpoint).config.data).images(np.array([300]))[0]
    with Image.open(path) as picture:
        assert (np.asarray(picture) == expected).all()
    refused(run("image", checkpoint, "-o", path, "--index", 324), "has no image 324", "from 0 to 323")


def test_image_needs_no_model_that_draws(run: Run, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        expand({"preset": "vq_small", "data": {"image_size": 16, "levels": {"floor_hue": 2}}})
    )
    write_checkpoint(
        tmp_path / "stage",
        config=config,
        weights={},
        metrics={},
        training=None,
        data_name=config.data.name,
        data_fingerprint="f" * 64,
        images_seen=0,
    )
    assert run("image", tmp_path / "stage", "-o", tmp_path / "a.png").code == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (16, 16)


def test_half_a_swap_is_refused(run: Run, checkpoint: Path) -> None:
    refused(run("swap", checkpoint, "--source", "a.png"), "a swap needs --source and --target, or neither")


def test_more_images_than_the_data_set_has_are_refused(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydis.data.open.open_dataset", lambda config: _Five())
    refused(run("swap", checkpoint, "--num-pairs", 3), "needs 6 images, five has 5: lower --num-pairs")


class _Five:
    name = "five"

    def __len__(self) -> int:
        return 5


def test_report_writes_a_page(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    outcome = run("report", checkpoint, "-o", path, "--steps", 2)
    assert (outcome.code, outcome.out) == (0, f"wrote {path}\n")
    assert path.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("verb", ["traverse", "swap", "image", "report"])
def test_an_output_that_cannot_be_written_is_told_before_the_checkpoint_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    monkeypatch.setattr("raydis.editor.editor.Editor.open", lambda *_, **__: pytest.fail("the checkpoint was opened"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")
    refused(run(verb, "mine@best", "-o", "a.png"), "-o a.png is a folder: name a file")
    refused(run(verb, "mine@best", "-o", "file/a.png"), "cannot write file/a.png: Not a directory", code=OUTPUT)
    if verb != "report":
        refused(run(verb, "mine@best", "-o", "a.txt"), "-o a.txt: found suffix '.txt', use one of .png, .jpg")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "file"}


@pytest.mark.parametrize("arguments", [["traverse"], ["swap", "--num-pairs", "1"], ["image"], ["report"]])
def test_a_disk_that_is_full_in_the_end_leaves_no_half_picture(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    verb, *options = arguments
    monkeypatch.setattr("raydis.report.output.os.replace", refuse)
    if verb != "image":
        options += ["--steps", "1"]
    told = run(verb, checkpoint, "-o", tmp_path / "new" / "a.png", *options)
    refused(told, "cannot write", "new/a.png: No space left on device: make room there", code=OUTPUT)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("verb", ["traverse", "swap", "image", "report"])
def test_a_checkpoint_that_is_not_there_is_told(run: Run, verb: str, tmp_path: Path) -> None:
    refused(run(verb, tmp_path / "absent"), "no checkpoint in", "there is no manifest.json", code=CHECKPOINT)
    refused(run(verb, "mine@best", "--storage", tmp_path), "no model mine@best", "found no models", code=REGISTRY)


def test_one_changed_byte_is_told_with_both_hashes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    weights = tmp_path / "c" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    told = run("traverse", tmp_path / "c")
    refused(told, "weights.safetensors is damaged: expected sha256", "found", code=CHECKPOINT)


def test_an_image_that_is_none_is_told(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    refused(run("traverse", checkpoint, "--image", tmp_path / "a.png"), "cannot decode", "a.png", code=DATA)


# ---- the registry


@pytest.fixture(scope="module")
def published(checkpoint: Path, later: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A storage that holds mine@1 = mine@best and mine@2; downloads go to a cache of its own."""
    from raydis.registry import Registry
    from raydis.store import open_store

    storage = tmp_path_factory.mktemp("storage")
    registry = Registry(open_store(str(storage)))
    registry.set_alias("mine", "best", registry.register(open_checkpoint(checkpoint), "mine"))
    registry.register(open_checkpoint(later), "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield storage


def test_models_list_names_versions_and_aliases(run: Run, published: Path, tmp_path: Path) -> None:
    outcome = run("models", "list", "--storage", published)
    assert outcome.code == 0
    assert outcome.out.split() == ["mine", "versions", "1,", "2", "best", "->", "1"]
    assert run("models", "list", "--storage", tmp_path).out.startswith(f"no models in {tmp_path}")


def test_a_storage_that_is_a_file_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (["models", "list"], ["models", "show", "mine"], ["traverse", "mine@best"], ["report", "mine@1"]):
        told = run(*command, "--storage", tmp_path / "file")
        refused(told, f"the store {tmp_path}/file is a file, not a folder", code=STORAGE)


def test_models_show_prints_manifest_and_metrics_as_json(run: Run, published: Path) -> None:
    outcome = run("models", "show", "mine@best", "--storage", published)
    facts = json.loads(outcome.out)
    assert (facts["name"], facts["version"]) == ("mine", 1)
    assert facts["manifest"]["images_seen"] == 32
    assert facts["metrics"]["scores"]["protocol"] == "search"


def test_models_register_makes_a_checkpoint_a_version(run: Run, checkpoint: Path, later: Path, tmp_path: Path) -> None:
    for folder, version in ((checkpoint, 1), (later, 2), (checkpoint, 1)):  # the same once more is the same version
        done = run("models", "register", folder, "own", "--storage", tmp_path / "new")
        assert done == (0, f"registered own@{version}\n", "")
    assert run("models", "promote", "own@2", "--storage", tmp_path / "new").code == 0
    assert json.loads(run("models", "show", "own@best", "--storage", tmp_path / "new").out)["version"] == 2
    refused(run("models", "register", tmp_path, "own"), "there is no manifest.json", code=CHECKPOINT)


def test_models_promote_moves_the_alias(run: Run, published: Path) -> None:
    moved = run("models", "promote", "mine@2", "--alias", "tried", "--storage", published)
    assert (moved.code, moved.err) == (0, "")
    first, hint = moved.out.splitlines()
    assert first == "mine@tried -> version 2"
    assert "`model: mine@2`" in hint
    assert json.loads(run("models", "show", "mine@tried", "--storage", published).out)["version"] == 2
    assert run("models", "promote", "mine@1", "--alias", "tried", "--storage", published).code == 0
    assert json.loads(run("models", "show", "mine@tried", "--storage", published).out)["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "absent"], ["no model absent@best", "found mine"]),
        (["show", "mine@7"], ["no model mine@7", "found versions 1, 2"]),
        (["promote", "mine@nightly"], ["no model mine@nightly", "with aliases best"]),
        (["promote", "mine@2", "--alias", "a/b"], ["alias 'a/b' is not allowed"]),
    ],
)
def test_a_model_that_is_not_there_is_told_with_those_that_are(
    run: Run, published: Path, arguments: list[str], words: list[str]
) -> None:
    refused(run("models", *arguments, "--storage", published), *words, code=REGISTRY)


# ---- the process itself


def test_the_module_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydis", "models", "show", "absent", "--storage", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    refused(Outcome(done.returncode, done.stdout, done.stderr), "no model absent@best", code=REGISTRY)


def test_help_names_every_preset(run: Run) -> None:
    helped = run("train", "--help").out
    assert [name for name in PRESETS if not re.search(rf"\b{name}\b", helped)] == []


def test_models_list_and_show_of_a_local_registry_need_neither_torch_nor_boto3(published: Path) -> None:
    for arguments in (["models", "list"], ["models", "show", "mine@1"]):
        script = f"import sys; sys.argv = {['raydis', *arguments, '--storage', str(published)]!r}\n"
        script += "from raydis.cli import main\ntry: main()\nfinally: "
        script += "print([name for name in ('torch', 'ray', 'boto3', 'numpy') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.rstrip().endswith("[]"), done.stdout


def test_help_names_the_verbs_and_imports_no_framework() -> None:
    script = "import sys; sys.argv = ['raydis', '--help']\nfrom raydis.cli import main\ntry: main()\nfinally: "
    script += "print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in ("train", "traverse", "swap", "image", "models"))
    assert done.stdout.rstrip().endswith("[]")
