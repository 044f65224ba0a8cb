"""What the units of a trained method tell of the factors of its data, measured once for `label_units`.

K pairs of images, N units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raydis.data import FactorDataset, Loader
from raydis.data.loader import images_at_once
from raydis.diffusion.samplers import DEFAULT_SAMPLER
from raydis.methods.contract import UnitMethod
from raydis.metrics.telling import MAX_IMAGES, Information, measure_information

NUM_PAIRS = 16  # a unit may act on few of its values: of half as many pairs, some runs' missed them
NUM_STEPS = 3  # both pictures of a pair share the error of so few


@torch.no_grad()
def information_of(method: UnitMethod, dataset: FactorDataset, loader: Loader, *, seed: int) -> Information | None:
    """Measure a method in eval mode on at most MAX_IMAGES distinct images, drawn by the seed from the whole data set.

    Returns:
        The information; None where the data set has no factors, or what was measured is not finite.
    """
    if dataset.space is None:
        return None
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(dataset))[:MAX_IMAGES])
    units = torch.cat([method.units(images) for images in loader.gather_in_parts(rows)])
    chosen = rng.permutation(len(rows))[: 2 * NUM_PAIRS]
    effects = effects_of(
        method, *units[chosen].tensor_split(2), seed=seed, at_once=images_at_once(dataset.image_shape[0])
    )
    return measure_information(units.double().cpu().numpy(), dataset.factors(rows), effects=effects, rng=rng)


@torch.no_grad()
def effects_of(method: UnitMethod, units: Tensor, others: Tensor, *, seed: int, at_once: int) -> np.ndarray:
    """Exchange each unit alone in K encoded images, and draw them, from the same noise where the method takes noise.

    Args:
        units, others: scalars (K, N) of the images, and those that are put in their place; surplus ones are left out.
        seed: of the noise.
        at_once: pictures drawn at a time.

    Returns:
        (N,), root-mean-square change of a pixel in grey levels of 255.
    """
    pairs, num_units = min(len(units), len(others)), units.shape[1]
    values = units[:pairs].repeat(num_units + 1, 1, 1)  # (N + 1, K, N): an exchange a row, and the images as they are
    for unit in range(num_units):
        values[unit, :, unit] = others[:pairs, unit]
    parts = values.flatten(0, 1).split(at_once)
    if method.noise_shape is None:
        drawn = torch.cat([method.decode(method.lift(part), None, None, None) for part in parts])
    else:
        noise = torch.randn(pairs, *method.noise_shape, generator=torch.Generator().manual_seed(seed))
        starts = noise.to(units.device).repeat(num_units + 1, 1, 1, 1).split(at_once)
        drawn = torch.cat(
            [
                method.decode(method.lift(part), start, NUM_STEPS, DEFAULT_SAMPLER)
                for part, start in zip(parts, starts, strict=True)
            ]
        )
    drawn = 127.5 * drawn.unflatten(0, (num_units + 1, pairs)).double()
    return (drawn[:-1] - drawn[-1]).square().flatten(1).mean(1).sqrt().cpu().numpy()
