"""The best trial's way into the registry, without Ray: the task's own function, called here."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.metrics.table import METRICS
from raydis.registry import Registry
from raydis.store import LocalStore
from raydis.sweep.publish import Published, _publish, final_evaluation, free_after_trials, scoring_resources
from raydis.sweep.spec import PromotionConfig, SweepSpec

SEARCH = {"method.num_units": {"kind": "int", "low": 4, "high": 6}}
PROMOTION = PromotionConfig(estimator="tree")
Drawn = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def spec() -> SweepSpec:
    """A sweep whose search looks at every image, as the published protocol does."""
    run = expand({"preset": "tiny", "train": {"num_images": 64}, "evaluation": {"max_images": 324, "rungs": [32]}})
    return parse(SweepSpec, {"name": "smoke", "run": run, "search": SEARCH}, source="test")


@contextlib.contextmanager
def watched_draws() -> Iterator[Drawn]:
    """The first numbers of every generator that FactorVAE and DCI are given, in their order."""
    found: Drawn = []

    def watched(metric: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, rng: np.random.Generator, **more: Any) -> Any:
            found.append(tuple(copy.deepcopy(rng).integers(2**62, size=4).tolist()))
            return metric(*arguments, rng=rng, **more)

        return watch

    with pytest.MonkeyPatch.context() as patch:
        for name in ("factor_vae", "dci"):
            metric = METRICS[name]
            patch.setitem(METRICS, name, replace(metric, function=watched(metric.function)))
        yield found


@dataclass(frozen=True)
class Trial:
    """A trial that was trained and scored: its checkpoint, and what its metrics drew."""

    checkpoint: Path
    draws: set[tuple[int, ...]]

    @property
    def scores(self) -> dict[str, Any]:
        return json.loads((self.checkpoint / "metrics.json").read_text())["scores"]


@pytest.fixture(scope="module")
def trial(spec: SweepSpec, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    torch.manual_seed(0)
    training = Training(spec.run, open_dataset(spec.run.data), device=torch.device("cpu"))
    with watched_draws() as drawn:
        *_, last = run_session(training, tmp_path_factory.mktemp("trial"), parent={"sweep": "s", "trial": "trial-0000"})
    assert last.checkpoint is not None
    return Trial(last.checkpoint, set(drawn))


@pytest.fixture
def publish(spec: SweepSpec, trial: Trial, tmp_path: Path) -> Callable[[], Published]:
    """Publishes the trial into an empty store."""
    return lambda: _publish(str(trial.checkpoint), spec, PROMOTION, str(tmp_path / "store"), "sweeps/smoke", 1.0)


def test_the_winner_is_scored_on_draws_that_the_search_never_used(
    publish: Callable[[], Published], trial: Trial
) -> None:
    with watched_draws() as drawn:
        scores = publish().scores
    assert len(trial.draws) == len(set(drawn)) == 3  # three seeds each; FactorVAE and DCI share them, as does the rung
    assert not trial.draws & set(drawn)
    assert trial.scores["num_images"] == scores.num_images == 324  # the images are the same: draws alone are not
    assert scores.spread is not None


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
    publish: Callable[[], Published], trial: Trial, tmp_path: Path
) -> None:
    published = publish()
    metrics = Registry(LocalStore(tmp_path / "store")).metrics(published.promotion.ref)
    assert metrics["scores"] == published.scores.to_dict()
    assert metrics["search_scores"] == trial.scores
    assert published.promotion.decision.reason.startswith("smoke@1 (mean of dci_disentanglement and factor_vae 0.")


@pytest.mark.parametrize(
    ("trial", "free", "expected"),
    [
        ({"CPU": 1.0}, [{"CPU": 2.0}], (2.0, 0.0)),
        ({"CPU": 1.0}, [{"CPU": 3.5}, {"CPU": 1.0}], (3.0, 0.0)),
        ({"CPU": 1.0}, [{"CPU": 64.0}], (8.0, 0.0)),  # no data set has more factors
        ({"CPU": 16.0}, [{"CPU": 64.0}], (16.0, 0.0)),
        ({"CPU": 4.0}, [{"CPU": 1.0}], (4.0, 0.0)),  # others work there: Ray waits for what a trial had
        ({"CPU": 0.5}, [], (0.5, 0.0)),
        ({"CPU": 1.0, "GPU": 0.5}, [{"CPU": 32.0}, {"CPU": 6.0, "GPU": 1.0}], (6.0, 0.5)),
    ],
)
def test_scoring_reserves_what_a_trial_had_and_the_cpus_that_one_node_has_free(
    trial: dict[str, float], free: list[dict[str, float]], expected: tuple[float, float]
) -> None:
    assert scoring_resources(trial, free) == expected


@pytest.mark.parametrize(
    ("total", "seen", "sleeps"),
    [
        ([2.0], [[2.0]], 0),
        ([2.0], [[1.0], [1.0], [2.0]], 2),  # Ray frees what the last trial had after a moment
        ([16.0, 16.0], [[0.0, 8.0]], 0),  # one of the nodes has free what scoring can use
        ([2.0], [[1.0]], 10),  # others work there
    ],
)
def test_scoring_waits_for_what_the_last_trials_had(
    monkeypatch: pytest.MonkeyPatch, total: list[float], seen: list[list[float]], sleeps: int
) -> None:
    slept: list[float] = []

    def free_nodes() -> list[dict[str, float]]:
        return [{"CPU": cpus} for cpus in seen[min(len(slept), len(seen) - 1)]]

    monkeypatch.setattr("raydis.sweep.publish.free_nodes", free_nodes)
    monkeypatch.setattr("raydis.sweep.publish.cluster_nodes", lambda: [{"CPU": cpus} for cpus in total])
    monkeypatch.setattr("raydis.sweep.publish.time.sleep", slept.append)
    assert free_after_trials({"CPU": 1.0}) == free_nodes()
    assert len(slept) == sleeps
