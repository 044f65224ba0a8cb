"""The best trial's way into the registry, without Ray: the task's own function, called here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydis.configfile import parse
from raydis.data import FactorDataset, open_dataset
from raydis.engine.fit import Training
from raydis.engine.session import run_session
from raydis.metrics import dci, factor_vae, protocol
from raydis.presets import expand
from raydis.registry import Registry
from raydis.store import LocalStore
from raydis.sweep.publish import Published, _publish, final_evaluation
from raydis.sweep.spec import PromotionConfig, SweepSpec

SEARCH = {"method.num_units": {"kind": "int", "low": 4, "high": 6}}
PROMOTION = PromotionConfig(estimator="tree")
Drawn = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def spec() -> SweepSpec:
    """A sweep whose search looks at every image, as the published protocol does."""
    run = expand({"preset": "tiny", "train": {"num_images": 64}, "evaluation": {"max_images": 324, "rungs": [32]}})
    return parse(SweepSpec, {"name": "smoke", "run": run, "search": SEARCH}, source="test")


@pytest.fixture(scope="module")
def dataset(spec: SweepSpec) -> FactorDataset:
    return open_dataset(spec.run.data)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The first rows that each metric draws, in the order in which metrics are computed."""
    found: Drawn = []

    def watched(metric: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, rng: np.random.Generator, **more: Any) -> Any:
            state = rng.bit_generator.state
            found.append((*rng.integers(2**62, size=4).tolist(),))
            rng.bit_generator.state = state
            return metric(*arguments, rng=rng, **more)

        return watch

    for module, name in ((factor_vae, "factor_vae"), (dci, "dci")):
        monkeypatch.setattr(protocol, name, watched(getattr(module, name)))
    return found


@pytest.fixture
def trial(spec: SweepSpec, dataset: FactorDataset, tmp_path: Path, drawn: Drawn) -> Path:
    """Checkpoint of a trial that was trained and scored."""
    torch.manual_seed(0)
    training = Training(spec.run, dataset, device=torch.device("cpu"))
    *_, last = run_session(training, tmp_path, parent={"sweep": "smoke", "trial": "trial-0000"})
    assert last.checkpoint is not None
    return last.checkpoint


@pytest.fixture
def publish(spec: SweepSpec, trial: Path, tmp_path: Path) -> Iterator[Callable[[], Published]]:
    def call() -> Published:
        return _publish(str(trial), spec, PROMOTION, str(tmp_path / "store"), "sweeps/smoke")

    return call


def test_the_winner_is_scored_on_draws_that_the_search_never_used(
    publish: Callable[[], Published], drawn: Drawn, trial: Path
) -> None:
    searched = set(drawn)
    drawn.clear()
    published = publish()
    assert (
        len(searched) == 3
    )  # of each metric three draws, FactorVAE and DCI from equal generators; the rung repeats one
    assert len(set(drawn)) == 3
    assert not searched & set(drawn)
    before = json.loads((trial / "metrics.json").read_text())["scores"]
    assert (before["num_images"], published.scores.num_images) == (324, 324)  # so that draws alone set them apart
    assert published.scores.seed != before["seed"]
    assert published.scores.spread is not None


@pytest.mark.parametrize("changes", [{}, {"protocol": "search"}, {"estimator": "hist"}])
def test_the_published_seed_is_of_a_stream_of_its_own_whatever_the_protocol(
    spec: SweepSpec, changes: dict[str, Any]
) -> None:
    promotion = PROMOTION.model_copy(update=changes)
    seeds = []
    for seed in range(20):
        wanted = final_evaluation(spec.run.evaluation.model_copy(update={"seed": seed}), promotion)
        assert (wanted.protocol, wanted.estimator) == (promotion.protocol, promotion.estimator)
        seeds.append(wanted.seed)
    assert len(set(seeds)) == 20
    assert min(seeds) >= 20  # of no sweep that counts its seeds up either


def test_a_publication_that_is_repeated_writes_the_same_bytes(publish: Callable[[], Published], tmp_path: Path) -> None:
    first, again = publish(), publish()
    assert first.scores == again.scores
    store = LocalStore(tmp_path / "store")
    versions = [first.promotion.ref, again.promotion.ref]
    manifests = [store.read(f"{ref.prefix}/manifest.json") for ref in versions]
    assert manifests[0] == manifests[1]  # it holds the sha256 of every other file
    assert Registry(store).resolve("smoke@best") == first.promotion.ref


def test_the_version_keeps_the_scores_that_the_trial_was_chosen_by(
    publish: Callable[[], Published], trial: Path, tmp_path: Path
) -> None:
    published = publish()
    metrics = Registry(LocalStore(tmp_path / "store")).metrics(published.promotion.ref)
    assert metrics["scores"] == published.scores.to_dict()
    assert metrics["search_scores"] == json.loads((trial / "metrics.json").read_text())["scores"]
    assert published.promotion.decision.reason.startswith("smoke@1 (mean of dci_disentanglement and factor_vae 0.")
