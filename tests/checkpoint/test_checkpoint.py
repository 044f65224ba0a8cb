from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import raydis
from raydis.checkpoint.manifest import FileEntry, Manifest
from raydis.checkpoint.migrate import migrate_config, migrate_metrics, migrate_training
from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.state import TrainingState
from raydis.checkpoint.verify import entry_of
from raydis.checkpoint.write import code_revision, write_checkpoint
from raydis.config import RunConfig
from raydis.config.dyga_sd import AnchorConfig, DygaSdConfig
from raydis.data import open_dataset
from raydis.errors import CheckpointError

CONFIG = RunConfig(method=DygaSdConfig(num_units=4, anchors=AnchorConfig(mode="off")), seed=7)
WEIGHTS = {
    "encoder.weight": torch.arange(6.0).reshape(2, 3),
    "anchors.alive": torch.tensor([[True, False]]),
    "anchors.counts": torch.tensor([3, 2**40]),
    "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
}
METRICS = {"loss": 0.25, "scores": {"status": "valid", "factor_vae": 1.0, "seed": None}}
TRAINING = TrainingState(
    tensors={"optimizer.0.step": torch.tensor(3.0), "rng": torch.arange(9, dtype=torch.uint8)},
    values={"step": 3, "history": [1, 2.5, "x", None, True]},
)


def write(folder: Path, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "config": CONFIG,
        "weights": WEIGHTS,
        "metrics": METRICS,
        "training": TRAINING,
        "data_name": "shapes3d_procedural",
        "data_fingerprint": "abc",
        "images_seen": 640,
    }
    return write_checkpoint(folder, **(arguments | changes))


def forge(folder: Path, name: str, data: bytes, **changes: Any) -> None:
    """Replaces a file and its entry, as somebody who wants the checkpoint to be accepted would."""
    (folder / name).write_bytes(data)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["files"][name] = entry_of(data).model_dump()
    (folder / "manifest.json").write_text(json.dumps(tree | changes))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_everything_written_comes_back_equal(tmp_path: Path) -> None:
    write(tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    assert checkpoint.config == CONFIG
    assert checkpoint.metrics == METRICS
    assert_equal(checkpoint.weights(), WEIGHTS)
    assert_equal(checkpoint.training().tensors, TRAINING.tensors)
    assert checkpoint.training().values == TRAINING.values


def test_the_manifest_says_what_the_weights_are_and_where_they_come_from(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c", parent={"sweep": "quickstart", "trial": "17"})
    assert open_checkpoint(tmp_path / "c").manifest == manifest
    assert manifest.files["config.json"] == entry_of((tmp_path / "c" / "config.json").read_bytes())
    assert manifest.files["weights.safetensors"].bytes == (tmp_path / "c" / "weights.safetensors").stat().st_size
    assert (manifest.images_seen, manifest.seed) == (640, 7)
    assert (manifest.data_name, manifest.data_fingerprint) == ("shapes3d_procedural", "abc")
    assert manifest.packages["numpy"] == np.__version__
    assert manifest.packages["raydis"] == raydis.__version__
    assert manifest.parent is not None
    assert (manifest.parent.sweep, manifest.parent.trial) == ("quickstart", "17")
    assert manifest.created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - manifest.created) < timedelta(minutes=1)


def test_the_format_is_plain_json_and_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "c")) == [
        "config.json",
        "manifest.json",
        "metrics.json",
        "training.json",
        "training.safetensors",
        "weights.safetensors",
    ]
    assert RunConfig.model_validate_json((tmp_path / "c" / "config.json").read_text()) == CONFIG
    assert_equal(load_file(tmp_path / "c" / "weights.safetensors"), WEIGHTS)


def test_tied_transposed_and_expanded_tensors_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3).requires_grad_()
    weights = {"a": base, "tied": base, "transposed": base.T, "row": base[0], "wide": base[:1].expand(4, 3)}
    write(tmp_path / "c", weights=weights)
    assert_equal(open_checkpoint(tmp_path / "c").weights(), {name: t.detach() for name, t in weights.items()})


def test_without_training_state_the_weights_open_but_nothing_resumes(tmp_path: Path) -> None:
    assert not write(tmp_path / "c", training=None).can_resume
    checkpoint = open_checkpoint(tmp_path / "c")
    assert_equal(checkpoint.weights(), WEIGHTS)
    with pytest.raises(CheckpointError, match=r"cannot be resumed: it has no training\.safetensors"):
        checkpoint.training()


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "metrics.json", "training.json"])
def test_a_flipped_bit_is_found_and_both_hashes_are_told(tmp_path: Path, name: str) -> None:
    manifest = write(tmp_path / "c")
    data = bytearray((tmp_path / "c" / name).read_bytes())
    data[-3] ^= 1
    (tmp_path / "c" / name).write_bytes(data)
    found: FileEntry = entry_of(bytes(data))
    with pytest.raises(
        CheckpointError,
        match=rf"{name} is damaged: expected sha256 {manifest.files[name].sha256} .*, found {found.sha256} ",
    ):
        open_checkpoint(tmp_path / "c")


def test_a_truncated_file_is_found_with_its_sizes(tmp_path: Path) -> None:
    size = write(tmp_path / "c").files["weights.safetensors"].bytes
    os.truncate(tmp_path / "c" / "weights.safetensors", size - 1)
    with pytest.raises(CheckpointError, match=rf"\({size} bytes\), found .* \({size - 1} bytes\)"):
        open_checkpoint(tmp_path / "c")


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / ".metadata.json").write_text("{}")  # Ray's own notes do not matter
    open_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "extra.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds extra\.bin, unknown to its manifest: remove it"):
        open_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "extra.bin").unlink()
    (tmp_path / "c" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks weights\.safetensors, which its manifest lists"):
        open_checkpoint(tmp_path / "c")


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint in .*absent: there is no manifest\.json\. Give the folder that a run printed",
    ):
        open_checkpoint(tmp_path / "absent")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file: Not a directory\. Give the folder of a checkpoint"):
        open_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 3},
            "has format version 3, this raydis reads 1 and 2: open it with the raydis that wrote it",
        ),
        ({"seed": "x"}, "is not a checkpoint's manifest: seed: Input should be a valid integer"),
        ({"files": {}}, r"files are \[\], expected config\.json, weights\.safetensors, metrics\.json"),
        ({"color": 1}, "color: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a checkpoint's manifest"):
        open_checkpoint(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "c")
    forge(tmp_path / "c", "../outside.json", b"{}")
    with pytest.raises(CheckpointError, match=r"files are \['\.\./outside\.json'"):
        open_checkpoint(tmp_path / "c")


def test_a_pickle_in_place_of_the_weights_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    write(tmp_path / "c")
    forge(tmp_path / "c", "weights.safetensors", pickle.dumps(Bomb()))
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors is not a safetensors file .*: use another checkpoint"
    ):
        open_checkpoint(tmp_path / "c").weights()
    assert not (tmp_path / "executed").exists()


def test_a_config_of_another_raydis_names_the_key_and_the_version_that_wrote_it(tmp_path: Path) -> None:
    write(tmp_path / "c")
    forge(tmp_path / "c", "config.json", json.dumps(CONFIG.model_dump(mode="json") | {"sed": 1}).encode())
    with pytest.raises(
        CheckpointError, match=rf"sed: unknown key; did you mean seed\? .*by raydis {raydis.__version__}"
    ):
        open_checkpoint(tmp_path / "c")


def of_older_code(folder: Path, **sections: Any) -> Path:
    """A version-1 checkpoint whose config.json has the anchor mode `relative`, with its manifest."""
    config = RunConfig(method=DygaSdConfig(num_units=4, anchors=AnchorConfig(shift_rate=0.5)), seed=7)
    write(folder, config=config)
    tree = config.model_dump(mode="json")
    tree["method"]["anchors"]["mode"] = "relative"
    forge(folder, "config.json", json.dumps(tree | sections).encode(), format_version=1)
    return folder


def test_a_checkpoint_with_the_removed_anchor_mode_opens_with_the_constant_shift_and_resumes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(of_older_code(tmp_path / "c"))
    assert isinstance(checkpoint.config.method, DygaSdConfig)
    assert checkpoint.config.method.anchors == AnchorConfig(mode="constant", shift_rate=0.5)
    assert_equal(checkpoint.training().tensors, TRAINING.tensors)
    dataset = open_dataset(checkpoint.config.data)
    same = dataclasses.replace(
        checkpoint, manifest=checkpoint.manifest.model_copy(update={"data_fingerprint": dataset.fingerprint})
    )
    same.check_belongs(
        checkpoint.config, data_name=dataset.name, data_fingerprint=dataset.fingerprint
    )  # what the same command asks for today
    write(tmp_path / "new", config=checkpoint.config)
    assert "relative" not in (tmp_path / "new" / "config.json").read_text()


@pytest.mark.parametrize("mode", ["off", "constant", "ramp", "release"])
def test_another_anchor_mode_is_read_as_it_was_written(tmp_path: Path, mode: str) -> None:
    method = DygaSdConfig.model_validate({"anchors": {"mode": mode}})
    write(tmp_path / "c", config=RunConfig(method=method))
    assert open_checkpoint(tmp_path / "c").config.method == method


@pytest.mark.parametrize(
    ("method", "key"),
    [(None, "method"), ([], "method"), ({"anchors": None}, r"method\.anchors"), ("relative", "method")],
)
def test_a_config_whose_sections_are_no_mappings_is_refused_by_their_names(
    tmp_path: Path, method: object, key: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: "):
        open_checkpoint(of_older_code(tmp_path / "c", method=method))


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32(1.0), torch.tensor(1.0)])
def test_a_metric_that_json_lacks_is_refused_and_leaves_nothing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot hold these values: .*Use null for what could not"):
        write(tmp_path / "c", metrics={"scores": [value]})
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_training_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.json cannot hold these values"):
        write(tmp_path / "c", training=TrainingState({}, {"best": math.nan}))


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"metrics\.json"):
        write(tmp_path / "c", metrics={"x": math.nan})
    assert open_checkpoint(tmp_path / "c").metrics == METRICS
    assert os.listdir(tmp_path) == ["c"]


def test_a_second_write_replaces_the_whole_folder(tmp_path: Path) -> None:
    write(tmp_path / "c")
    write(tmp_path / "c", training=None, images_seen=1280)
    checkpoint = open_checkpoint(tmp_path / "c")
    assert checkpoint.manifest.images_seen == 1280
    assert not (tmp_path / "c" / "training.json").exists()
    assert os.listdir(tmp_path) == ["c"]


def test_a_killed_replacement_leaves_the_old_one_whole_and_findable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "c":
            raise KeyboardInterrupt
        return rename(self, target)

    write(tmp_path / "c")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "c", images_seen=1280)
    monkeypatch.undo()
    kept = f"c.old-{os.getpid()}"
    with pytest.raises(
        CheckpointError,
        match=rf"no checkpoint in .*\. An interrupted replacement has left the previous checkpoint .*: open {kept}",
    ):
        open_checkpoint(tmp_path / "c")
    assert open_checkpoint(tmp_path / kept).manifest.images_seen == 640


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*file/c: "):
        write(tmp_path / "file" / "c")


def test_the_code_revision_is_the_commit_that_tracks_the_package_and_nobody_elses(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for package in ("ours", "installed"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    assert code_revision.__wrapped__(tmp_path / "ours") is None
    git("init", "--quiet")
    git("add", "ours")
    git("commit", "--quiet", "--message", "first")
    assert code_revision.__wrapped__(tmp_path / "ours") == git("rev-parse", "HEAD")
    assert code_revision.__wrapped__(tmp_path / "installed") is None
    (tmp_path / "ours" / "__init__.py").write_text("changed")
    assert code_revision.__wrapped__(tmp_path / "ours") == f"{git('rev-parse', 'HEAD')}-dirty"


# ---- what older code stored


def test_the_vectors_of_a_codebook_are_called_embeddings() -> None:
    stage, unchanged = {"kind": "vq", "num_codes": 64}, {"kind": "vq", "num_embeddings": 32}
    found = migrate_config({"first_stage": dict(stage), "method": dict(stage)})
    assert found == {name: {"kind": "vq", "num_embeddings": 64} for name in ("first_stage", "method")}
    assert migrate_config({"method": dict(unchanged)}) == {"method": unchanged}
    assert migrate_config({"method": dict(stage)}, 2) == {"method": stage}  # which the configuration then refuses


def test_what_a_method_measured_inside_itself_is_its_diagnosis_and_stays_as_it_wrote_it() -> None:
    measured = {"means": {"num_gaussians": 2.5}, "units": [{"num_gaussians": 3}, {"num_gaussians": 2}]}
    for old in (measured, None):
        assert migrate_metrics({"loss": 0.5, "anchoring": old}, 1) == {"loss": 0.5, "diagnosis": old}
    for today in ({"loss": 0.5, "diagnosis": measured}, {"loss": 0.5}):
        assert migrate_metrics(dict(today), 1) == today
    assert migrate_metrics({"anchoring": measured}, 2) == {"anchoring": measured}


def test_the_moments_of_a_single_optimiser_become_those_of_the_first_move() -> None:
    kept = {"method.optimizer.0.weight": torch.ones(1), "method.unet.1.weight": torch.ones(2)}
    older = {"optimizer.0.step": torch.tensor(3.0), "optimizer.12.exp_avg_sq": torch.ones(4)}
    found = migrate_training(TrainingState(kept | older, {"step": 3}), 1, ["reconstruct", "discriminate"])
    renamed = {"optimizer.reconstruct.0.step": "optimizer.0.step"}
    renamed |= {"optimizer.reconstruct.12.exp_avg_sq": "optimizer.12.exp_avg_sq"}
    assert_equal(found.tensors, kept | {name: older[old] for name, old in renamed.items()})
    assert found.values == {"step": 3, "unscored": None}  # older code still had no report that waits


def test_a_report_that_waits_for_its_scores_has_one_loss_and_one_count_of_failures() -> None:
    older = {"step": 5, "loss": 0.25, "num_unanchored_units": 2, "finished": True}
    values = {"step": 5, "unscored": dict(older)}
    found = migrate_training(TrainingState({}, values), 1, ["denoise"]).values["unscored"]
    assert found == {"step": 5, "losses": {"loss": 0.25}, "health": {"num_unanchored_units": 2}, "finished": True}
    assert values["unscored"] == older  # it is not changed in place


@pytest.mark.parametrize("format_version", [1, 2])  # code between the two formats wrote today's state as version 1
@pytest.mark.parametrize("moves", [["denoise"], []])
def test_a_training_of_this_code_is_left_as_it_is(moves: list[str], format_version: int) -> None:
    tensors = {f"optimizer.{move}.0.step": torch.tensor(3.0) for move in moves}
    values = {"step": 3, "unscored": {"losses": {"loss": 0.5}, "health": {}, "finished": True}}
    assert migrate_training(TrainingState(tensors, values), format_version, moves) == TrainingState(tensors, values)
