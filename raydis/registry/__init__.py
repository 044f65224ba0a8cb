"""Numbered versions of a named model, their aliases, and the rule by which an alias moves.

No torch here: a registry moves and checks files, it never opens the weights.
"""

from __future__ import annotations

from raydis.registry.locate import locate, locate_first_stage, names_version
from raydis.registry.names import ModelRef
from raydis.registry.registry import AliasState, Registry

__all__ = ["AliasState", "ModelRef", "Registry", "locate", "locate_first_stage", "names_version"]
