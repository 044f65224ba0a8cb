"""Data sets of images with known generative factors, and the loader that makes batches of them.

A data set is rendered, or read from its official files. Its factors form a grid; a folder of pictures has no factors.
"""

from __future__ import annotations

from raydis.data.dataset import ArrayDataset, FactorDataset
from raydis.data.loader import Loader
from raydis.data.open import open_dataset
from raydis.data.pixels import denormalise, normalise
from raydis.data.space import FactorSpace

__all__ = ["ArrayDataset", "FactorDataset", "FactorSpace", "Loader", "denormalise", "normalise", "open_dataset"]
