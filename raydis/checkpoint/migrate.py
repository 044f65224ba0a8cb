"""What older versions of raydis wrote, read as this version writes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raydis.checkpoint.state import TrainingState


def migrate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Replace in a tree that older code stored what `RunConfig` no longer knows; change the tree in place, return it.

    `method.family` is called `method.kind` now.

    `anchors.mode: relative` becomes `constant`. It shifted a token by shift_rate exp(-distance) of the way to its
    anchor, with a factor of median 0.995 on trained models: a typical shift is longer than before by 0.5 % of itself.
    """
    method = config.get("method")
    if not isinstance(method, dict):
        return config
    if "family" in method:
        method["kind"] = method.pop("family")
    anchors = method.get("anchors")
    if isinstance(anchors, dict) and anchors.get("mode") == "relative":
        anchors["mode"] = "constant"
    return config


def migrate_training(state: TrainingState, moves: Sequence[str]) -> TrainingState:
    """Return a state that older code stored as `Training` stores it now; one of this code is returned as it is.

    The moments of the single optimiser, `optimizer.3.exp_avg`, belong to the method's first move, as
    `optimizer.MOVE.3.exp_avg`. A report that waits for its scores had one loss and one count of failures, and before
    that there was none.

    Args:
        moves: names of the method's moves, in order.
    """
    tensors = {
        f"optimizer.{moves[0]}.{name.partition('.')[2]}" if re.match(r"optimizer\.\d+\.", name) else name: tensor
        for name, tensor in state.tensors.items()
    }
    values = {"unscored": None} | state.values
    unscored = values["unscored"]
    if unscored and "losses" not in unscored:
        unscored = dict(unscored)
        unscored["losses"] = {"loss": unscored.pop("loss")}
        unscored["health"] = {"num_unanchored_units": unscored.pop("num_unanchored_units")}
    return TrainingState(tensors, values | {"unscored": unscored})
