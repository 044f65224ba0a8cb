"""The configuration keys and values that only older versions of raydis know, and what to write instead.

`raydis.checkpoint.migrate` translates stored configurations. This table only provides error messages for users who run
an old file or command again.
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
    """A key, or a value of a key, that raydis no longer knows.

    Attributes:
        key: dotted key of a sweep file, or of a run (and so of the section `run` of a sweep file).
        value: the value that is no longer known; None if the key itself is no longer known, whatever its value.
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
        "was removed, because its shift differed from that of constant by 0.5 % (median): use constant",
    ),
    Former("promotion.rule", "dci", _OBJECTIVES.format("{metric: dci_disentanglement}")),
    Former("promotion.rule", "factor_vae", _OBJECTIVES.format("{metric: factor_vae}")),
    Former("promotion.rule", None, _OBJECTIVES.format("{metric: dci_disentanglement}, {metric: factor_vae}")),
)


def former_keys(tree: Tree) -> list[str]:
    """Return a sentence for each former key or value in the tree of a run or of a sweep file."""
    return list(_found(tree, "")) + list(_found(tree.get("run"), "run."))


def replacement(key: str) -> str | None:
    """Return what to write instead of a dotted key of a run; None if it is not a former key."""
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
