"""Keys and values that older versions of raydis knew, and what to write instead: the one table of them.

`raydis.checkpoint.migrate` translates what is stored; this table only helps people who repeat an old file or command.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from raydis.config.tree import Tree, is_tree

_OBJECTIVES = (
    "no longer exists, because the sweep's objectives alone say which trial is best: "
    "remove it and write `objectives: [{}]` at the top of the sweep file"
)


class Former(NamedTuple):
    """What is no longer known.

    Attributes:
        key: dotted key of a sweep file, or of a run and so of a sweep file's `run`.
        value: the value of the key that is no longer known; None: the key itself is not, whatever its value.
        instead: a clause that says why, and what to write.
    """

    key: str
    value: str | None
    instead: str


FORMER = (
    Former("method.family", None, "is called method.kind now: rename it"),
    Former("method.num_codes", None, "is called method.num_embeddings now: rename it"),
    Former("first_stage.num_codes", None, "is called first_stage.num_embeddings now: rename it"),
    Former(
        "method.anchors.mode",
        "relative",
        "was removed, because its shift was that of constant to 0.5 % (median): use constant",
    ),
    Former("promotion.rule", "dci", _OBJECTIVES.format("{metric: dci_disentanglement}")),
    Former("promotion.rule", "factor_vae", _OBJECTIVES.format("{metric: factor_vae}")),
    Former("promotion.rule", None, _OBJECTIVES.format("{metric: dci_disentanglement}, {metric: factor_vae}")),
)


def former_keys(tree: Tree) -> list[str]:
    """Return a sentence for each former key or value in the tree of a run or of a sweep file."""
    return list(_found(tree, "")) + list(_found(tree.get("run"), "run."))


def replacement(key: str) -> str | None:
    """Return what to write instead of a dotted key of a run; None where it is no former one."""
    return next((former.instead for former in FORMER if former.key == key and former.value is None), None)


def _found(tree: object, prefix: str) -> Iterator[str]:
    told: set[str] = set()
    for former in FORMER:
        *above, last = former.key.split(".")
        node = tree
        for name in above:
            node = node.get(name) if is_tree(node) else None
        if not is_tree(node) or last not in node or former.key in told:
            continue
        if former.value is None or former.value == node[last]:
            told.add(former.key)
            yield f"{prefix}{former.key}={node[last]} {former.instead}"
