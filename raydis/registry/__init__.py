"""Checkpoints as published things: the manifest, numbered versions of a named model, aliases, promotion.

No torch here: a registry moves and checks files, it never opens the weights.
"""

from __future__ import annotations

from raydis.registry.registry import AliasState, ModelRef, Registry, locate, locate_first_stage, names_version
from raydis.registry.transfer import default_cache

__all__ = ["AliasState", "ModelRef", "Registry", "default_cache", "locate", "locate_first_stage", "names_version"]
