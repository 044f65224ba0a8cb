"""Numbered versions of a named model, their aliases, and the rule by which an alias moves.

No torch here: a registry moves and checks files, it never opens the weights.
"""

from __future__ import annotations

from raydis.registry.registry import AliasState, ModelRef, Registry, locate, locate_first_stage, names_version

__all__ = ["AliasState", "ModelRef", "Registry", "locate", "locate_first_stage", "names_version"]
