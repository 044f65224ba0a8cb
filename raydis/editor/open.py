"""Build the method of a checkpoint with its trained weights."""

from __future__ import annotations

from raydis.build import build_method
from raydis.checkpoint.open import Checkpoint
from raydis.errors import CheckpointError, ConfigError
from raydis.methods.contract import Method, UnitMethod


def open_method(checkpoint: Checkpoint) -> tuple[UnitMethod, int]:
    """Return the trained method, and the number of channels C of its images, which the configuration does not say.

    Raises:
        CheckpointError: the weights fit the configuration neither with colour nor with grey images, their file changed
            after it was verified, or the method has no units.
    """
    method, channels = _trained(checkpoint)
    if not isinstance(method, UnitMethod):
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} holds a model without units, for other runs to build on: open that of "
            "a run that names it as its first_stage.checkpoint or method.pretrained.checkpoint"
        )
    return method, channels


def _trained(checkpoint: Checkpoint) -> tuple[Method, int]:
    weights, found = checkpoint.weights(), ""
    for channels in (3, 1):
        try:
            method = build_method(checkpoint.config, channels)
            method.load_state_dict(weights)
        except (RuntimeError, ConfigError) as error:
            found = found or " ".join(str(error).split())[:300]
        else:
            return method, channels
    raise CheckpointError(
        f"checkpoint {checkpoint.folder}: its weights do not fit its config.json ({found}): use another checkpoint"
    )
