"""The model registry: numbered versions of named models, aliases for them, and the rule by which an alias moves.

This package does not import torch: a registry copies and verifies files, and never loads the weights.
"""

from __future__ import annotations

from raydis.registry.locate import locate, locate_checkpoints, names_version
from raydis.registry.names import ModelRef
from raydis.registry.registry import AliasState, Registry

__all__ = ["AliasState", "ModelRef", "Registry", "locate", "locate_checkpoints", "names_version"]
