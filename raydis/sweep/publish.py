"""Publish the best trial of a sweep: score it again, draw a traversal, register it, and promote it if it is better.

The best of many trials is also the luckiest, so its search scores are too high on average. The published scores use a
seed that no trial was scored with, and are therefore free of this bias, even if both protocols use the same images.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from raydis.checkpoint.fetch import fetch_checkpoint
from raydis.checkpoint.open import Checkpoint
from raydis.cluster.connect import fetch_result
from raydis.cluster.resources import SETTLE_S, Node, cluster_nodes, free_nodes, worker_resources
from raydis.config import EvaluationConfig, RunConfig
from raydis.metrics.scores import Scores
from raydis.metrics.scoring import derived_seed
from raydis.registry import Registry
from raydis.registry.promotion import Promotion, promote
from raydis.registry.registry import DEFAULT_ALIAS
from raydis.store import open_store
from raydis.sweep.files import PICTURE_FILE
from raydis.sweep.spec import PromotionConfig, SweepSpec
from raydis.sweep.summary import TrialRecord

if TYPE_CHECKING:  # the driver does not import torch
    import torch

    from raydis.data import FactorDataset
    from raydis.methods.contract import UnitMethod

MAX_SCORING_CPUS = 8  # DCI fits one classifier a factor; no data set has more factors


@dataclass(frozen=True)
class Published:
    """The final scores of the best trial, its version in the registry, and its picture."""

    scores: Scores
    promotion: Promotion
    picture: str  # the traversal grid's key below the storage
    alias: str = DEFAULT_ALIAS  # the alias that might move to it


def publish(best: TrialRecord, spec: SweepSpec, config: PromotionConfig, *, storage: str, folder: str) -> Published:
    """Score, draw, register and promote the best trial in a task on the cluster.

    Args:
        best: a complete trial.
        spec: the sweep.
        config: the sweep's promotion.
        storage: folder or s3://bucket/prefix.
        folder: the sweep's key below `storage`.

    Raises:
        RaydisError: scoring, drawing, registering or promoting failed.
    """
    assert best.checkpoint is not None  # a complete trial has one
    trial = worker_resources(spec.run.hardware)
    num_cpus, num_gpus = scoring_resources(trial, free_after_trials(trial))
    task = ray.remote(_publish).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=1)
    return fetch_result(task.remote(best.checkpoint, spec, config, storage, folder, num_cpus))


def free_after_trials(trial: Mapping[str, float]) -> list[Node]:
    """Return the free resources of each node, once those of the last trials are among them.

    Ray takes a moment to count them as free. Without the wait, scoring would mostly get the CPUs of a single trial, and
    take as many times longer. What other work on the cluster holds is waited for as well, but for SETTLE_S only.
    """
    most, free = scoring_resources(trial, cluster_nodes()), free_nodes()
    for _ in range(SETTLE_S):
        if scoring_resources(trial, free) == most:
            break
        time.sleep(1.0)
        free = free_nodes()
    return free


def scoring_resources(trial: Mapping[str, float], free: Sequence[Node]) -> tuple[float, float]:
    """Return the CPUs and GPUs that scoring reserves: those of a trial, or more CPUs if a node has them free now.

    Args:
        trial: the resources of a trial, which the cluster is known to have.
        free: the free resources of each node.
    """
    num_cpus, num_gpus = trial["CPU"], trial.get("GPU", 0.0)
    most = max((node.get("CPU", 0.0) for node in free if node.get("GPU", 0.0) >= num_gpus), default=0.0)
    return max(num_cpus, float(min(math.floor(most), MAX_SCORING_CPUS))), num_gpus


def _publish(
    checkpoint: str, spec: SweepSpec, config: PromotionConfig, storage: str, folder: str, num_cpus: float
) -> Published:
    """Publish the best trial; see `publish`.

    This is a Ray task that reserves `num_cpus`, so that the driver needs neither torch nor a GPU. Ray runs it again if
    its process dies; the second run writes the same bytes.
    """
    from raydis.data import open_dataset
    from raydis.editor.editor import Editor
    from raydis.engine.device import num_threads, resolve_device, use_threads
    from raydis.report.grids import draw_traversal, save_picture

    run, num_jobs = spec.run, num_threads(num_cpus)
    use_threads(num_jobs)
    with tempfile.TemporaryDirectory(prefix="raydis-") as work:
        source = fetch_checkpoint(checkpoint, Path(work, "fetched"))
        editor, dataset = Editor.open(source, device=resolve_device(run.hardware)), open_dataset(run.data)
        scores = _score(editor.method, dataset, editor.device, run, config, num_jobs)
        final = with_scores(source, scores)
        picture = Path(work, PICTURE_FILE)
        image = dataset.images(np.array([len(dataset) // 2]))[0]
        save_picture(draw_traversal(editor, image), picture)
        store = open_store(storage)
        store.upload(picture, f"{folder}/{picture.name}")
        registry = Registry(store)
        promotion = promote(registry, final, spec.model_name, objectives=spec.objectives, alias=config.alias)
    return Published(scores, promotion, f"{folder}/{picture.name}", config.alias)


def with_scores(source: Checkpoint, scores: Scores) -> Checkpoint:
    """Return a checkpoint without training state and with new `scores`; the old ones are kept as `search_scores`."""
    found = {"scores": scores.to_dict(), "search_scores": source.metrics.get("scores")}
    return source.with_metrics(source.metrics | found)


def final_evaluation(evaluation: EvaluationConfig, config: PromotionConfig) -> EvaluationConfig:
    """Return how the best trial is scored: as `config` says, with a seed that no trial was scored with."""
    seed = derived_seed(evaluation.seed, "publication")
    return evaluation.model_copy(update={"protocol": config.protocol, "estimator": config.estimator, "seed": seed})


def _score(
    method: UnitMethod,
    dataset: FactorDataset,
    device: torch.device,
    run: RunConfig,
    config: PromotionConfig,
    num_jobs: int,
) -> Scores:
    from raydis.data import Loader
    from raydis.engine.evaluate import evaluate

    num_gpus = run.compute.num_gpus
    loader = Loader(dataset, batch_size=run.train.batch_size, seed=run.seed, device=device, num_gpus=num_gpus)
    wanted = final_evaluation(run.evaluation, config)
    scores = evaluate(method, dataset, loader, wanted, num_jobs=num_jobs)
    assert scores is not None  # the protocol is not `none`
    return scores
