"""The schedule of a run, as pure functions of its configuration and of the number of images that it has seen."""

from __future__ import annotations

import math

from raydis.config import RunConfig
from raydis.config.train import TrainConfig


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Return the learning rate of the step after `images_seen` images: linear warm-up, then constant or cosine."""
    if images_seen < config.warmup_images:
        return config.learning_rate * (images_seen + config.batch_size) / (config.warmup_images + config.batch_size)
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    share = (images_seen - config.warmup_images) / max(config.num_images - config.warmup_images, 1)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def due(interval: int, before: int, after: int) -> bool:
    """Return whether a multiple of `interval` lies in (before, after]."""
    return after // interval > before // interval


def num_parts(batch_size: int, largest: int | None) -> int:
    """Return the smallest number of equal parts of a batch with at most `largest` images each."""
    largest = largest or batch_size
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= largest)


def budget_warnings(config: RunConfig) -> list[str]:
    """Return one sentence for each part of the configuration that the run is too short to reach."""
    train, rungs, warnings = config.train, config.evaluation.rungs, config.method.warnings(config)
    budget = f"train.num_images={train.num_images}"
    if beyond := [rung for rung in rungs if rung > train.num_images]:
        warnings.append(
            f"evaluation.rungs={list(rungs)} has {beyond} beyond {budget}, which are never scored: remove them, or "
            "raise train.num_images"
        )
    if train.warmup_images >= train.num_images:
        warnings.append(
            f"train.warmup_images={train.warmup_images} is not over within {budget}: the learning rate never reaches "
            f"train.learning_rate={train.learning_rate:g}. Lower it, or raise train.num_images"
        )
    return warnings
