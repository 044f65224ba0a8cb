"""What the units of a trained method tell of the factors of its data, measured once for `label_units`."""

from __future__ import annotations

import numpy as np
import torch

from raydis.data import FactorDataset, Loader
from raydis.methods.contract import UnitMethod
from raydis.metrics.telling import MAX_IMAGES, Information, measure_information


@torch.no_grad()
def information_of(method: UnitMethod, dataset: FactorDataset, loader: Loader, *, seed: int) -> Information | None:
    """Measure a method in eval mode on at most MAX_IMAGES distinct images, drawn by the seed from the whole data set.

    Returns:
        The information; None where the data set has no factors, or units or codes are not finite.
    """
    if dataset.space is None:
        return None
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(dataset))[:MAX_IMAGES])
    units = [method.units(images) for images in loader.gather_in_parts(rows)]
    codes = [method.lift(part) for part in units]
    return measure_information(
        torch.cat(units).float().cpu().numpy(),
        dataset.factors(rows),
        codes=torch.cat(codes).float().cpu().numpy(),
        rng=rng,
    )
