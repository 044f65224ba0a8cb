"""Images and their factors: grids, rendered sets, official files, batches."""

from __future__ import annotations

from raydis.data.dataset import ArrayDataset, FactorDataset
from raydis.data.loader import Loader, normalise
from raydis.data.open import open_dataset
from raydis.data.space import FactorSpace

__all__ = ["ArrayDataset", "FactorDataset", "FactorSpace", "Loader", "normalise", "open_dataset"]
