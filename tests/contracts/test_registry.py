"""Registrations and promotions at the same time, on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from raydis.checkpoint.fetch import fetch_checkpoint
from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scores import Scores
from raydis.metrics.standing import Objective
from raydis.metrics.table import sizes_of
from raydis.registry import ModelRef, Registry, locate
from raydis.registry.promotion import promote
from raydis.store import Store, StoreError, open_store
from tests.fake_s3 import FakeS3, serving


def write(folder: Path, dci: float = 0.5) -> Path:
    scores = Scores(
        protocol="search",
        sizes=sizes_of(SEARCH),
        estimator="hist",
        seed=0,
        num_images=100,
        data_fingerprint="abc",
        status="valid",
        values={"factor_vae": 0.5, "dci_disentanglement": dci},
        num_draws=3,
        spread={"dci_disentanglement": 0.01},
    )
    write_checkpoint(
        folder,
        config=RunConfig(),
        weights={"weight": torch.full((3,), dci)},
        metrics={"scores": scores.to_dict()},
        training=None,
        data_name="shapes3d_procedural",
        data_fingerprint="abc",
        images_seen=1,
    )
    return folder


def test_of_promotions_at_once_none_is_lost_and_the_best_holds_the_alias(store: Store, tmp_path: Path) -> None:
    values = [0.1, 0.7, 0.3, 0.9, 0.5, 0.2, 0.8, 0.4]  # further apart than the margin
    goals = [Objective(metric="dci_disentanglement")]
    folders = [write(tmp_path / f"c{value}", value) for value in values]
    with ThreadPoolExecutor(8) as pool:
        promotions = list(
            pool.map(lambda folder: promote(Registry(store), open_checkpoint(folder), "m", objectives=goals), folders)
        )
    registry = Registry(store)
    assert sorted(promotion.ref.version for promotion in promotions) == registry.versions("m") == list(range(1, 9))
    found = [registry.metrics(promotion.ref)["scores"]["values"]["dci_disentanglement"] for promotion in promotions]
    assert found == values
    assert registry.resolve("m@best") == promotions[values.index(0.9)].ref


def test_aliases_set_at_once_count_every_move(store: Store, tmp_path: Path) -> None:
    registry = Registry(store)
    versions = [
        registry.register(open_checkpoint(write(tmp_path / f"c{number}", 0.1 * number)), "m") for number in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: registry.set_alias("m", "best", version), versions))
    assert registry.alias("m", "best").moves == 4


def test_a_registered_version_opens_as_the_checkpoint_it_was(store: Store, tmp_path: Path) -> None:
    registry = Registry(store)
    ref = ModelRef("m", registry.register(open_checkpoint(write(tmp_path / "c")), "m"))
    checkpoint = registry.fetch(ref, tmp_path / "cache")
    assert torch.equal(checkpoint.weights()["weight"], torch.full((3,), 0.5))
    assert checkpoint.manifest == registry.manifest(ref)


@pytest.mark.s3
@pytest.mark.parametrize("prefix", ["runs/1", "my runs#1/50%20?x='1'"])
def test_a_checkpoint_is_fetched_by_its_s3_uri(prefix: str, s3_uri: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "c")
    for path in folder.iterdir():
        open_store(s3_uri).upload(path, f"{prefix}/{path.name}")
    fetched = fetch_checkpoint(f"{s3_uri}/{prefix}", tmp_path / "cache")
    assert fetched.folder.parent == tmp_path / "cache"
    assert fetched.manifest == open_checkpoint(folder).manifest


def test_of_registrations_of_the_same_content_at_once_all_get_one_number(store: Store, tmp_path: Path) -> None:
    folders = [write(tmp_path / f"c{number}", 0.1 * number) for number in range(3)]
    with ThreadPoolExecutor(9) as pool:
        versions = list(
            pool.map(lambda number: Registry(store).register(open_checkpoint(folders[number % 3]), "m"), range(9))
        )
    assert versions[:3] * 3 == versions
    assert sorted(versions[:3]) == Registry(store).versions("m") == [1, 2, 3]
    for number, version in enumerate(versions[:3]):
        fetched = Registry(store).fetch(ModelRef("m", version), tmp_path / "cache")
        assert fetched.manifest.files == open_checkpoint(folders[number]).manifest.files


def test_a_promotion_that_is_repeated_after_it_succeeded_changes_nothing(store: Store, tmp_path: Path) -> None:
    registry, folder = Registry(store), write(tmp_path / "c")
    objectives = [Objective(metric="dci_disentanglement")]
    first = promote(registry, open_checkpoint(folder), "m", objectives=objectives)
    state = registry.alias("m", "best")
    again = promote(registry, open_checkpoint(folder), "m", objectives=objectives)
    assert (again.ref, again.decision.promote) == (first.ref, True)
    assert registry.alias("m", "best") == state
    assert registry.versions("m") == [1]


def test_a_version_opens_from_the_place_that_its_name_leads_to(store: Store, tmp_path: Path) -> None:
    storage = f"{store.uri}/my runs#1/50%20"
    version = Registry(open_store(storage)).register(open_checkpoint(write(tmp_path / "c")), "m")
    place = locate(f"m@{version}", storage)
    assert place == f"{storage}/registry/m/versions/1"
    assert fetch_checkpoint(place, tmp_path / "cache").manifest.seed == RunConfig().seed


@pytest.mark.s3
def test_a_server_that_ignores_conditions_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write(tmp_path / f"c{number}", 0.1 * number) for number in range(2)]
    with serving(FakeS3("ignores", "ignores"), monkeypatch) as server:

        def register(number: int) -> None:
            with pytest.raises(StoreError, match="does not implement conditional writes"):
                Registry(open_store("s3://bucket/race")).register(open_checkpoint(folders[number % 2]), "m")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(register, range(6)))
        assert server.objects == {}
