from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.first_stage import KlStage
from raydis.errors import CheckpointError, RegistryError, StoreError
from raydis.registry import AliasState, ModelRef, Registry, locate, locate_checkpoints
from raydis.store import LocalStore, StoreConflict

Make = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "store"))


@pytest.fixture
def filled(registry: Registry, make_checkpoint: Make) -> Registry:
    """Versions 1 and 2 of `quickstart`, no alias."""
    for number in (1, 2):
        registry.register(open_checkpoint(make_checkpoint(f"c{number}", weights=b"%d" % number)), "quickstart")
    return registry


def test_versions_count_up_from_one_for_each_name(registry: Registry, make_checkpoint: Make) -> None:
    folders = [make_checkpoint(f"c{number}", weights=b"%d" % number) for number in range(4)]
    names = ("a", "a", "b", "a")
    assert [registry.register(open_checkpoint(folder), name) for folder, name in zip(folders, names, strict=True)] == [
        1,
        2,
        1,
        3,
    ]
    assert registry.versions("a") == [1, 2, 3]
    assert registry.names() == ["a", "b"]


def test_versions_are_in_the_order_of_numbers_not_of_text(registry: Registry, make_checkpoint: Make) -> None:
    for number in range(11):
        registry.register(open_checkpoint(make_checkpoint(f"c{number}", weights=b"%d" % number)), "a")
    assert registry.versions("a") == list(range(1, 12))


def test_the_layout_is_the_documented_one_without_training_state(filled: Registry) -> None:
    filled.set_alias("quickstart", "best", 1)
    files = ("config.json", "manifest.json", "metrics.json", "weights.safetensors")
    expected = [f"registry/quickstart/versions/{version}/{file}" for version in (1, 2) for file in files]
    alias, numbers = "registry/quickstart/aliases/best.json", "registry/quickstart/numbers.json"
    assert list(filled.store.list()) == [alias, numbers, *expected]


def test_an_empty_store_has_no_models(registry: Registry) -> None:
    assert (registry.names(), registry.versions("a"), registry.aliases("a")) == ([], [], {})


def test_a_damaged_folder_is_not_registered(registry: Registry, make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    (folder / "weights.safetensors").write_bytes(b"w3ights")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        registry.register(open_checkpoint(folder), "a")
    assert list(registry.store.list()) == []


@pytest.mark.parametrize("breaks_at", ["config.json", "metrics.json", "weights.safetensors", "manifest.json"])
def test_an_interrupted_registration_is_no_version_until_the_next_one_completes_it(
    breaks_at: str, filled: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload, write = filled.store.upload, filled.store.write

    def breaking_upload(path: Path, key: str) -> None:
        if key.endswith(breaks_at):
            raise StoreError("the network is gone")
        upload(path, key)

    def breaking_write(key: str, data: bytes, **condition: Any) -> str:
        if key.endswith(breaks_at):
            raise StoreError("the network is gone")
        return write(key, data, **condition)

    folder = make_checkpoint(weights=b"third")
    monkeypatch.setattr(filled.store, "upload", breaking_upload)
    monkeypatch.setattr(filled.store, "write", breaking_write)
    with pytest.raises(StoreError, match=r"the network is gone"):
        filled.register(open_checkpoint(folder), "quickstart")
    monkeypatch.undo()
    assert filled.versions("quickstart") == [1, 2]
    with pytest.raises(RegistryError, match=r"found versions 1, 2; the registration of this one was interrupted"):
        filled.resolve("quickstart@3")
    assert filled.register(open_checkpoint(make_checkpoint("other", weights=b"fourth")), "quickstart") == 4
    assert filled.register(open_checkpoint(folder), "quickstart") == 3
    assert filled.versions("quickstart") == [1, 2, 3, 4]
    fetched = filled.fetch(ModelRef("quickstart", 3), tmp_path / "cache")
    assert (fetched.folder / "weights.safetensors").read_bytes() == b"third"


def test_the_same_content_keeps_its_number_and_is_uploaded_once(
    filled: Registry, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c1"
    monkeypatch.setattr(filled.store, "upload", None)  # what is there is not sent again
    assert filled.register(open_checkpoint(folder), "quickstart") == 1
    (folder / "training.safetensors").unlink()  # nor does it matter whether a training could go on from it
    (folder / "training.json").unlink()
    (folder / "manifest.json").write_bytes(filled.store.read("registry/quickstart/versions/1/manifest.json"))
    assert filled.register(open_checkpoint(folder), "quickstart") == 1
    assert filled.versions("quickstart") == [1, 2]
    monkeypatch.undo()
    assert filled.register(open_checkpoint(folder), "another") == 1  # a number belongs to a name


def test_a_number_is_never_given_to_other_content_even_if_its_version_was_deleted(
    filled: Registry, make_checkpoint: Make, tmp_path: Path
) -> None:
    for key in list(filled.store.list("registry/quickstart/versions/2/")):
        filled.store.delete(key)
    assert filled.register(open_checkpoint(make_checkpoint("third", weights=b"3")), "quickstart") == 3
    assert filled.register(open_checkpoint(tmp_path / "c2"), "quickstart") == 2


def test_a_registry_from_before_numbers_were_kept_goes_on(
    filled: Registry, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.store.delete("registry/quickstart/numbers.json")
    filled.store.write("registry/quickstart/versions/3/config.json", b"{}")  # interrupted: whose it was is lost
    assert filled.register(open_checkpoint(tmp_path / "c2"), "quickstart") == 2
    assert filled.register(open_checkpoint(make_checkpoint("fourth", weights=b"4")), "quickstart") == 4
    read: list[str] = []
    monkeypatch.setattr(filled.store, "read", lambda key, read_it=filled.store.read: read.append(key) or read_it(key))
    assert filled.register(open_checkpoint(tmp_path / "c1"), "quickstart") == 1
    assert read == ["registry/quickstart/numbers.json"]  # the old manifests were read once


def test_registering_asks_the_store_as_often_with_many_versions_as_with_few(
    registry: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(name: str) -> None:
        method = getattr(registry.store, name)
        monkeypatch.setattr(registry.store, name, lambda *given, **named: calls.append(name) or method(*given, **named))

    for name in ("read", "write", "tag", "exists", "list", "upload"):
        count(name)
    asked = []
    for number in range(12):
        calls.clear()
        registry.register(open_checkpoint(make_checkpoint(f"c{number}", weights=b"%d" % number)), "m")
        asked.append(sorted(calls))
    assert asked[1:] == [asked[1]] * 11
    assert asked[1] == ["list", "read", "tag", "upload", "write", "write", "write", "write"]


@pytest.mark.parametrize("text", [b"", b"[]", b'{"one": "x"}', b"3"])
def test_a_file_of_numbers_that_is_none_is_named(filled: Registry, tmp_path: Path, text: bytes) -> None:
    filled.store.write("registry/quickstart/numbers.json", text)
    with pytest.raises(
        RegistryError, match=r"quickstart/numbers\.json in .* cannot be read .*: delete it, and raydis rebuilds it"
    ):
        filled.register(open_checkpoint(tmp_path / "c1"), "quickstart")


def test_references_resolve_by_number_by_alias_and_by_the_default_alias(filled: Registry) -> None:
    filled.set_alias("quickstart", "best", 1)
    filled.set_alias("quickstart", "canary", 2)
    assert filled.resolve("quickstart@2") == ModelRef("quickstart", 2)
    assert filled.resolve("quickstart@canary") == ModelRef("quickstart", 2)
    assert filled.resolve("quickstart@best") == filled.resolve("quickstart") == ModelRef("quickstart", 1)
    assert filled.aliases("quickstart") == {"best": 1, "canary": 2}


def test_an_alias_that_is_missing_says_what_there_is(filled: Registry) -> None:
    message = (
        rf"no model quickstart@best in {filled.store.uri}; found versions 1, 2 without alias best\. Run `python -m"
    )
    with pytest.raises(RegistryError, match=message):
        filled.resolve("quickstart")
    filled.set_alias("quickstart", "canary", 1)
    with pytest.raises(
        RegistryError, match=r"found versions 1, 2 with aliases canary\. Run .*quickstart@2 --alias best"
    ):
        filled.resolve("quickstart")


def test_an_unknown_version_or_model_says_what_there_is(filled: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no model quickstart@7 in .*; found versions 1, 2$"):
        filled.resolve("quickstart@7")
    with pytest.raises(RegistryError, match=r"no model quickstrt@best in .*; found quickstart\. Run a sweep first"):
        filled.resolve("quickstrt")
    with pytest.raises(RegistryError, match=r"no model quickstart@7 in .*; found versions 1, 2$"):
        filled.manifest(ModelRef("quickstart", 7))


def test_an_alias_to_a_version_that_is_gone_says_so(filled: Registry) -> None:
    filled.set_alias("quickstart", "best", 2)
    filled.store.delete("registry/quickstart/versions/2/manifest.json")
    with pytest.raises(RegistryError, match=r"it points to version 2, which is gone; found version 1\. Run"):
        filled.resolve("quickstart")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "-a", "a" * 65, "a b", "ä"])
def test_names_that_are_no_plain_word_are_refused(registry: Registry, make_checkpoint: Make, name: str) -> None:
    with pytest.raises(RegistryError, match=r"model name .* is not allowed: up to 64 letters"):
        registry.register(open_checkpoint(make_checkpoint()), name)
    with pytest.raises(RegistryError, match=r"model name .* is not allowed"):
        registry.resolve(f"{name}@1")


@pytest.mark.parametrize("alias", ["", "7", "a/b", "a@b"])
def test_an_alias_is_a_word_that_cannot_be_taken_for_a_version(filled: Registry, alias: str) -> None:
    with pytest.raises(RegistryError, match=r"alias .* is not allowed: .*not digits alone, which name a version"):
        filled.set_alias("quickstart", alias, 1)


def test_an_alias_cannot_point_to_a_version_that_does_not_exist(filled: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no model quickstart@3 in .*; found versions 1, 2"):
        filled.set_alias("quickstart", "best", 3)
    assert filled.aliases("quickstart") == {}


def test_an_alias_remembers_where_it_came_from(filled: Registry) -> None:
    filled.set_alias("quickstart", "best", 1)
    filled.set_alias("quickstart", "best", 2)
    filled.set_alias("quickstart", "best", 2)
    state = filled.alias("quickstart", "best")
    assert (state.version, state.previous, state.moves) == (2, 1, 2)


def test_an_alias_moves_only_over_the_state_that_was_read(filled: Registry) -> None:
    filled.move_alias("quickstart", "best", 1, expected=AliasState())
    with pytest.raises(StoreConflict):
        filled.move_alias("quickstart", "best", 2, expected=AliasState())
    stale = filled.alias("quickstart", "best")
    for version in (2, 1):  # and back: the same version, but not the same state
        filled.set_alias("quickstart", "best", version)
    with pytest.raises(StoreConflict):
        filled.move_alias("quickstart", "best", 2, expected=stale)
    assert filled.aliases("quickstart") == {"best": 1}


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"version": "x", "previous": null, "moves": 1}'])
def test_an_alias_file_that_is_none_is_named(filled: Registry, text: bytes) -> None:
    filled.store.write("registry/quickstart/aliases/best.json", text)
    with pytest.raises(RegistryError, match=r"aliases/best\.json in .* is not an alias .*delete it and set the alias"):
        filled.resolve("quickstart")


def test_a_fetched_version_is_the_registered_one(filled: Registry, tmp_path: Path) -> None:
    folder = filled.fetch(filled.resolve("quickstart@2"), tmp_path / "cache").folder
    assert (folder / "weights.safetensors").read_bytes() == b"2"
    assert not (folder / "training.json").exists()
    assert filled.manifest(ModelRef("quickstart", 2)).images_seen == 10


def test_metrics_are_checked_against_the_manifest(filled: Registry) -> None:
    ref = ModelRef("quickstart", 1)
    assert filled.metrics(ref) == {"loss": 0.1, "scores": None}
    filled.store.write(f"{ref.prefix}/metrics.json", json.dumps({"loss": 0.0}).encode())
    with pytest.raises(CheckpointError, match=r"metrics\.json of quickstart@1 in .* is damaged: expected sha256"):
        filled.metrics(ref)


# ---- from a name to a place


def test_a_name_leads_to_its_versions_folder_and_a_place_to_itself(filled: Registry, tmp_path: Path) -> None:
    storage = str(tmp_path / "store")
    filled.set_alias("quickstart", "best", 1)
    for name, version in (("quickstart@best", 1), ("quickstart@2", 2)):
        assert Path(locate(name, storage)) == tmp_path / f"store/registry/quickstart/versions/{version}"
    folder = tmp_path / "runs@home"
    folder.mkdir()
    for place in (str(folder), "runs/train/x", "runs/a@b", "s3://bucket/a@b"):
        assert locate(place, storage) == place
    with pytest.raises(RegistryError, match="no model other@best"):
        locate("other@best", storage)


def test_a_run_names_the_version_of_its_first_stage_and_nothing_else_changes(filled: Registry, tmp_path: Path) -> None:
    storage = str(tmp_path / "store")
    plain = RunConfig()
    assert locate_checkpoints(plain, storage) == plain
    run = RunConfig(first_stage=KlStage(checkpoint="quickstart@1", num_blocks=1))
    located = locate_checkpoints(run, storage)
    place = str(tmp_path / "store/registry/quickstart/versions/1")
    assert located == RunConfig(first_stage=KlStage(checkpoint=place, num_blocks=1))
    built = RunConfig.model_validate({"method": {"kind": "disdiff", "pretrained": {"checkpoint": "quickstart@1"}}})
    assert locate_checkpoints(built, storage).checkpoints() == {"method.pretrained.checkpoint": place}
