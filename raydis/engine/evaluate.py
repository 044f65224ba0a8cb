"""Score a trained method on its data set: choose the images, encode them once, and compute the metrics.

M images encoded, N units, D unit width, F factors.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from raydis.config.train import EvaluationConfig
from raydis.data import FactorDataset, Loader
from raydis.errors import MetricError
from raydis.methods.contract import Method, UnitMethod
from raydis.metrics.checks import check_varying
from raydis.metrics.protocol import PUBLISHED, SEARCH, Protocol
from raydis.metrics.scores import Scores, unscored
from raydis.metrics.scoring import NUM_DRAWS, score
from raydis.metrics.subgrid import search_subgrid
from raydis.metrics.table import check_needs, metrics_of

# Too large a learning rate makes codes constant, if all ReLUs of the encoder's head die, or not finite.
ADVICE = "lower train.learning_rate or raise train.warmup_images"


def encode_images(method: Method, loader: Loader, indices: np.ndarray) -> np.ndarray:
    """Return the codes of the images at `indices` (M,), float32 (M, N, D), encoded in eval mode and in parts.

    Raises:
        MetricError: the method has no units.
    """
    if not isinstance(method, UnitMethod):
        raise MetricError(f"{type(method).__name__} has no units to score: set evaluation.protocol=none")
    was_training = method.training
    method.eval()
    with torch.no_grad():
        codes = [method.encode(images).float().cpu().numpy() for images in loader.gather_in_parts(indices)]
    method.train(was_training)
    return np.concatenate(codes)


def scored_indices(dataset: FactorDataset, *, protocol: Protocol, max_images: int) -> np.ndarray:
    """Return the indices of the images that a protocol uses: all, or at most `max_images`.

    These are a fixed product sub-grid of the factors, or, of images that fill no grid, spread evenly over the data set.

    Raises:
        MetricError: a sub-grid with two levels of each factor already has more than `max_images` images.
    """
    if protocol.whole_data_set:
        return np.arange(len(dataset), dtype=np.int64)
    if dataset.space is None:
        return np.linspace(0, len(dataset) - 1, min(max_images, len(dataset))).astype(np.int64)
    levels = search_subgrid(dataset.space.sizes, max_images)
    return dataset.space.index(np.array(list(product(*levels)), dtype=np.int64))


def check_scorable(dataset: FactorDataset, config: EvaluationConfig) -> None:
    """Check before training that `evaluate` will not refuse the data set.

    Raises:
        MetricError: as in `evaluate`: a sub-grid that cannot be drawn, fewer than two factors that vary, or factors
            that one of the configured metrics cannot use.
    """
    if config.protocol != "none" and dataset.factor_names:
        for protocol in {_protocol(config), SEARCH}:  # rungs and `Method.diagnose` use SEARCH
            factors = dataset.factors(scored_indices(dataset, protocol=protocol, max_images=config.max_images))
            check_varying(factors)
            if config.metrics != "all":  # which leaves out what the factors do not fit
                for name in metrics_of(replace(protocol, metrics=config.metrics)):
                    check_needs(name, np.zeros((len(factors), 2)), factors)


def evaluate(
    method: Method,
    dataset: FactorDataset,
    loader: Loader,
    config: EvaluationConfig,
    *,
    protocol: Protocol | None = None,
    num_draws: int = NUM_DRAWS,
    num_jobs: int = 1,
) -> Scores | None:
    """Score a method.

    Args:
        method: a method with units.
        dataset: the data set that the images and their factors come from.
        loader: of the same data set.
        config: which protocol and which estimator to use.
        protocol: replaces the protocol of the configuration, unless that is `none`.
        num_draws, num_jobs: see `score`.

    Returns:
        the scores, or None if the protocol of the configuration is `none`. Their status is `no_factors` for data
        without factors, and `not_ready` if the method says so. If it is `invalid`, their reason says what to change.

    Raises:
        MetricError: the factors cannot be scored. `check_scorable` finds this beforehand.
    """
    if config.protocol == "none":
        return None
    protocol = replace(protocol, metrics=config.metrics) if protocol else _protocol(config)
    if not dataset.factor_names:
        status, reason = "no_factors", f"data set {dataset.name} has no factors"
    else:
        status, reason = "not_ready", method.not_ready() if isinstance(method, UnitMethod) else None
    if reason is not None:
        return unscored(
            status,
            reason,
            protocol=protocol,
            num_images=0,
            data_fingerprint=dataset.fingerprint,
            estimator=config.estimator,
            seed=config.seed,
        )
    indices = scored_indices(dataset, protocol=protocol, max_images=config.max_images)
    scores = score(
        encode_images(method, loader, indices),
        dataset.factors(indices),
        protocol=protocol,
        estimator=config.estimator,
        seed=config.seed,
        num_draws=num_draws,
        num_jobs=num_jobs,
        data_fingerprint=dataset.fingerprint,
        widths=method.unit_widths if isinstance(method, UnitMethod) and method.units_are_vectors else None,
    )
    return replace(scores, reason=f"{scores.reason}; {ADVICE}") if scores.status == "invalid" else scores


def _protocol(config: EvaluationConfig) -> Protocol:
    return replace(PUBLISHED if config.protocol == "published" else SEARCH, metrics=config.metrics)
