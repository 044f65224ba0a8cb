"""Images and their factors: grids, rendered sets, official files, batches."""

from __future__ import annotations

from raydis.data.dataset import ArrayDataset, FactorDataset
from raydis.data.loader import Loader
from raydis.data.open import open_dataset
from raydis.data.pixels import denormalise, normalise
from raydis.data.space import FactorSpace

__all__ = ["ArrayDataset", "FactorDataset", "FactorSpace", "Loader", "denormalise", "normalise", "open_dataset"]
