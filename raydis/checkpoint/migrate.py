"""Convert what older versions of the checkpoint format hold to the current version, in memory only.

Several states of the code wrote different content under version number 1. The migrations from version 1 therefore
recognise each old form, and leave unchanged what already has today's form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from raydis.checkpoint.state import TrainingState

Tree = dict[str, Any]


def migrate_config(config: Tree, format_version: int = 1) -> Tree:
    """Replace what `RunConfig` no longer knows in a configuration of an older format. Change it in place and return it.

    Args:
        format_version: of the checkpoint. A file without a version of its own, such as a run's `run.json`, may have
            been written by any code: use 1, the default.
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
    """Convert the state of a training to the form in which `Training` stores it now.

    Args:
        format_version: of the checkpoint.
        moves: names of the method's moves, in order.
    """
    return _training_1_to_2(state, moves) if format_version < 2 else state


def _config_1_to_2(config: Tree) -> None:
    """Rename `method.family` and `num_codes` to `method.kind` and `num_embeddings`; replace `anchors.mode: relative`.

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
    """Rename `anchoring` to `diagnosis`. Its content is the method's own, which `UnitMethod.read_diagnosis` reads."""
    if "anchoring" in metrics:
        metrics["diagnosis"] = metrics.pop("anchoring")


def _section(tree: Tree, name: str) -> Tree:
    """Return a section of a tree; an empty one if it is not a mapping, an error that validation reports later."""
    section = tree.get(name)
    return cast("Tree", section) if isinstance(section, dict) else {}


def _training_1_to_2(state: TrainingState, moves: Sequence[str]) -> TrainingState:
    """Assign the moments of the single optimiser to the method's first move, and convert the unscored report.

    `optimizer.3.exp_avg` becomes `optimizer.MOVE.3.exp_avg`. The unscored report had one loss and one count of failures
    instead of dictionaries; the earliest code wrote no such report.
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
