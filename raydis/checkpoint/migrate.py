"""What older versions of the format hold, read as this version holds it. Nothing on the disk is changed.

Version 1 was written by several states of the code, which did not say more than 1: its migrations recognise what each
of them wrote, and leave alone what is as it is today.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from raydis.checkpoint.state import TrainingState

Tree = dict[str, Any]


def migrate_config(config: Tree, format_version: int = 1) -> Tree:
    """Replace in a tree of an older format what `RunConfig` no longer knows; change the tree in place, return it.

    Args:
        format_version: of the checkpoint. A record that has no version of its own, as a run's `run.json`, may have been
            written by any code: take 1, the default.
    """
    if format_version < 2:
        _config_1_to_2(config)
    return config


def migrate_metrics(metrics: Tree, format_version: int) -> Tree:
    """Rename in the metrics of an older format what has another name today; change them in place, return them.

    Scores are left as they are, for `Scores.from_dict` reads every layout of them.
    """
    if format_version < 2:
        _metrics_1_to_2(metrics)
    return metrics


def migrate_training(state: TrainingState, format_version: int, moves: Sequence[str]) -> TrainingState:
    """Return the state of a training of an older format as `Training` stores it now.

    Args:
        format_version: of the checkpoint.
        moves: names of the method's moves, in order.
    """
    return _training_1_to_2(state, moves) if format_version < 2 else state


def _config_1_to_2(config: Tree) -> None:
    """`method.family` became `method.kind`, `num_codes` became `num_embeddings`, and `anchors.mode: relative` is now
    `constant`.

    `relative` shifted a token by shift_rate exp(-distance) of the way to its anchor, with a factor of median 0.995 on
    trained models: a typical shift is longer than before by 0.5 % of itself.
    """
    method = _section(config, "method")
    if "family" in method:
        method["kind"] = method.pop("family")
    for section in (method, _section(config, "first_stage")):
        if "num_codes" in section:
            section["num_embeddings"] = section.pop("num_codes")
    anchors = _section(method, "anchors")
    if anchors.get("mode") == "relative":
        anchors["mode"] = "constant"


def _metrics_1_to_2(metrics: Tree) -> None:
    """The diagnosis of the anchors counted a unit's components as `num_gaussians`, which is where a fit starts."""
    anchoring = _section(metrics, "anchoring")
    for counts in (_section(anchoring, "means"), *anchoring.get("units", ())):
        if "num_gaussians" in counts:
            counts["num_components"] = counts.pop("num_gaussians")


def _section(tree: Tree, name: str) -> Tree:
    """Return a section of a tree; an empty one where it is no mapping, which the configuration's own check reports."""
    section = tree.get(name)
    return cast("Tree", section) if isinstance(section, dict) else {}


def _training_1_to_2(state: TrainingState, moves: Sequence[str]) -> TrainingState:
    """The moments of the single optimiser, `optimizer.3.exp_avg`, belong to the method's first move.

    They are `optimizer.MOVE.3.exp_avg` now. A report that waits for its scores had one loss and one count of failures;
    the first code had no such report.
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
