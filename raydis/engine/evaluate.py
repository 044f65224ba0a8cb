"""From a trained method and its data to scores: choose the images, encode them once, score the table.

M images encoded, N units, D unit width, F factors.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch

from raydis.config import EvaluationConfig
from raydis.data import FactorDataset, Loader
from raydis.methods.dyga_sd import DygaSd
from raydis.metrics.protocol import PUBLISHED, SEARCH, Scores, score, search_subgrid, unscored

ENCODE_BATCH = 512


def encode_images(method: DygaSd, loader: Loader, indices: np.ndarray) -> np.ndarray:
    """Codes of the images at `indices` (M,), as float32 (M, N, D); in eval mode, batch by batch."""
    was_training = method.training
    method.eval()
    with torch.no_grad():
        parts = np.array_split(indices, max(math.ceil(len(indices) / ENCODE_BATCH), 1))
        codes = [method.encode(loader.gather(part)).float().cpu().numpy() for part in parts]
    method.train(was_training)
    return np.concatenate(codes)


def scored_indices(dataset: FactorDataset, *, protocol: str, max_images: int) -> np.ndarray:
    """Images that a protocol looks at: all of them, or a fixed product sub-grid of at most `max_images`."""
    if protocol == "published" or dataset.space is None:
        return np.arange(len(dataset), dtype=np.int64)
    levels = search_subgrid(dataset.space.sizes, max_images)
    return dataset.space.index(np.array(list(product(*levels)), dtype=np.int64))


def evaluate(
    method: DygaSd, dataset: FactorDataset, loader: Loader, config: EvaluationConfig, *, num_jobs: int = 1
) -> Scores | None:
    """Score a method by the configured protocol; None where the protocol is `none`.

    A data set without factors gives Scores of status `no_factors`.
    """
    if config.protocol == "none":
        return None
    protocol = PUBLISHED if config.protocol == "published" else SEARCH
    if dataset.space is None:
        return unscored(
            "no_factors",
            f"data set {dataset.name} has no factors",
            protocol=protocol,
            num_images=0,
            data_fingerprint=dataset.fingerprint,
            estimator=config.estimator,
            seed=config.seed,
        )
    indices = scored_indices(dataset, protocol=config.protocol, max_images=config.max_images)
    return score(
        encode_images(method, loader, indices),
        dataset.factors(indices),
        protocol=protocol,
        estimator=config.estimator,
        seed=config.seed,
        num_jobs=num_jobs,
        data_fingerprint=dataset.fingerprint,
    )
