"""Load what a run borrows from checkpoints of other runs: a learned first stage, or a pre-trained model.

Both stay frozen, and become part of the run's own checkpoints, so that a trained model works alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
from raydis.checkpoint.open import Checkpoint
from raydis.config import RunConfig
from raydis.config.first_stage import LearnedStage
from raydis.config.run import PRETRAINED, STAGE
from raydis.config.section import Model
from raydis.engine.latents import weights_digest
from raydis.errors import CheckpointError, ConfigError
from raydis.methods.contract import Method
from raydis.models.autoencoders import Autoencoder


def fill_first_stage(autoencoder: Autoencoder, config: RunConfig) -> None:
    """Load the weights of a run's first stage from the checkpoint of the run that trained the stage.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: it does not match `config.first_stage`, or was trained on images of another shape.
    """
    stage = config.first_stage
    assert isinstance(stage, LearnedStage)
    advice = f"Train one with `python -m raydis train --preset {stage.kind}` and name its folder"
    checkpoint = _fetch(STAGE, stage.checkpoint, advice)
    name, found = f"{STAGE}={stage.checkpoint}", checkpoint.config
    if found.method.kind != stage.kind:
        raise ConfigError(
            f"{name} was trained as method.kind={found.method.kind}, but first_stage.kind={stage.kind}: "
            + (f"set first_stage.kind={found.method.kind}" if _trains_a_stage(found) else "name another")
        )
    _check_settings(name, "first_stage", found.method, stage)
    _check_image_size(name, found, config, "a first stage")
    weights = {
        key.removeprefix("network."): tensor
        for key, tensor in checkpoint.weights().items()
        if key.startswith("network.")
    }
    _load(autoencoder, weights, name, config)


def fill_pretrained(pretrained: Method, config: RunConfig) -> None:
    """Load the weights of the model that a method is built on, with its first stage, from the model's own checkpoint.

    If the first stage is a learned one, `fill_first_stage` must have loaded its weights, which are compared with those
    that the model was trained on.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: none is named; it does not match `config.method.pretrained` or `config.first_stage`; or it was
            trained on images of another shape or behind another first stage.
    """
    section = config.method.borrowed
    assert section is not None
    advice = f"Train a model with method.kind={section.kind} and name its folder"
    if section.checkpoint is None:
        raise ConfigError(f"method.kind={config.method.kind} needs {PRETRAINED}, which is not set. {advice}")
    checkpoint = _fetch(PRETRAINED, section.checkpoint, advice)
    name, found = f"{PRETRAINED}={section.checkpoint}", checkpoint.config
    if found.method.kind != section.kind:
        raise ConfigError(
            f"{name} was trained as method.kind={found.method.kind}, but method.kind={config.method.kind} is built on "
            f"method.kind={section.kind}: name another"
        )
    if found.first_stage.kind != config.first_stage.kind:
        raise ConfigError(
            f"{name} was trained with first_stage.kind={found.first_stage.kind}: set it instead of "
            f"{config.first_stage.kind}"
        )
    _check_settings(name, "first_stage", found.first_stage, config.first_stage)
    _check_image_size(name, found, config, "such a model")
    _check_settings(name, "method.pretrained", found.method, section)
    stage = pretrained.autoencoder
    expected = None if stage is None else weights_digest(stage)
    _load(pretrained, checkpoint.weights(), name, config)
    if stage is not None and weights_digest(stage) != expected:
        raise ConfigError(
            f"{name} was trained behind another first stage than {STAGE}={config.checkpoints()[STAGE]}: name the one "
            f"that it was trained behind, {found.checkpoints()[STAGE]}"
        )


def _fetch(key: str, source: str, advice: str) -> Checkpoint:
    try:
        return fetch_checkpoint(source, default_cache())
    except CheckpointError as error:
        raise CheckpointError(f"{key}={source}: {error}. {advice}") from error


def _trains_a_stage(config: RunConfig) -> bool:
    """Return whether a run trains a first stage: it has no units, and works on no other stage's latents."""
    return not config.method.scored and not config.method.uses_first_stage


def _check_settings(name: str, section: str, theirs: Model, ours: Model) -> None:
    """Raise ConfigError if a setting of the network differs, which is one that both sections have.

    The others concern its training or its use. The checkpoint that a section names is compared by its weights.
    """
    if differing := _differing_settings(theirs.model_dump(mode="json"), ours.model_dump(mode="json")):
        has = ", ".join(f"{field}={theirs}" for field, (theirs, _) in differing.items())
        advice = ", ".join(
            f"{section}.{field}={theirs} instead of {ours}" for field, (theirs, ours) in differing.items()
        )
        raise ConfigError(f"{name} has {has}: set {advice}")


def _differing_settings(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return both values of each setting that both have and that differs, by its dotted key."""
    found: dict[str, tuple[Any, Any]] = {}
    for field, value in ours.items():
        other = theirs.get(field, value)
        if isinstance(value, dict) and isinstance(other, dict):
            found |= _differing_settings(other, value, f"{prefix}{field}.")
        elif other != value and field != "checkpoint":
            found[prefix + field] = (other, value)
    return found


def _check_image_size(name: str, found: RunConfig, config: RunConfig, what: str) -> None:
    if found.data.image_size != config.data.image_size:
        raise ConfigError(
            f"{name} was trained on images of {found.data.image_size} px, but data.image_size is "
            f"{config.data.image_size}: train {what} on images of this size, or set the other one"
        )


def _load(module: nn.Module, weights: dict[str, Tensor], name: str, config: RunConfig) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # the number of channels is not part of the configuration
        what = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name} does not fit the images of data.name={config.data.name} ({what})") from error
