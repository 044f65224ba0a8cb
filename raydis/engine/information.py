"""Measure what the units of a trained method tell about the factors of its data; `label_units` names units by it.

K pairs of images, N units, D unit width.
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

NUM_PAIRS = 16  # a unit may change the image at few of its values only, which 8 pairs missed in some runs
NUM_STEPS = 3  # so few suffice, as the error of sampling is the same in both images of a pair


@torch.no_grad()
def information_of(method: UnitMethod, dataset: FactorDataset, loader: Loader, *, seed: int) -> Information | None:
    """Measure a method on at most MAX_IMAGES distinct images, which the seed draws from the whole data set.

    The method must be in eval mode.

    Returns:
        the information; None if the data set has no factors, or if a measured value is not finite.
    """
    if not dataset.factor_names:
        return None
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(dataset))[:MAX_IMAGES])
    parts = [method.represent(images) for images in loader.gather_in_parts(rows)]
    units, codes = (torch.cat(each) for each in zip(*parts, strict=True))
    chosen = rng.permutation(len(rows))[: 2 * NUM_PAIRS]
    ours, theirs = zip(units[chosen].tensor_split(2), codes[chosen].tensor_split(2), strict=True)
    effects = effects_of(method, ours, theirs, seed=seed, at_once=images_at_once(dataset.image_shape[0]))
    return measure_information(units.double().cpu().numpy(), dataset.factors(rows), effects=effects, rng=rng)


@torch.no_grad()
def effects_of(
    method: UnitMethod, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], *, seed: int, at_once: int
) -> np.ndarray:
    """Measure how much the image changes if one unit is replaced by that of another image.

    Both images are drawn from the same noise, if the method takes noise.

    Args:
        method: the trained method.
        ours: scalars (K, N) and codes (K, N, D) of K images.
        theirs: those of other images, which replace them one unit at a time. If one has more rows, its last ones are
            ignored.
        seed: of the noise.
        at_once: number of images that are drawn together.

    Returns:
        (N,), root-mean-square change of a pixel, in grey levels of 0..255.
    """
    pairs, num_units = min(len(ours[0]), len(theirs[0])), ours[0].shape[1]
    units, codes = (
        _each_replaced(own[:pairs], other[:pairs]).split(at_once) for own, other in zip(ours, theirs, strict=True)
    )
    parts = [method.write(code, unit) for code, unit in zip(codes, units, strict=True)]
    if method.noise_shape is None:
        drawn = torch.cat([method.decode(part, None, None, None) for part in parts])
    else:
        noise = torch.randn(pairs, *method.noise_shape, generator=torch.Generator().manual_seed(seed))
        starts = noise.to(ours[0].device).repeat(num_units + 1, 1, 1, 1).split(at_once)
        steps = method.default_steps
        sampling = (None, None) if steps is None else (min(NUM_STEPS, steps), DEFAULT_SAMPLER)
        drawn = torch.cat([method.decode(part, start, *sampling) for part, start in zip(parts, starts, strict=True)])
    drawn = 127.5 * drawn.unflatten(0, (num_units + 1, pairs)).double()
    return (drawn[:-1] - drawn[-1]).square().flatten(1).mean(1).sqrt().cpu().numpy()


def _each_replaced(own: Tensor, other: Tensor) -> Tensor:
    """Return units (K, N, ...) N + 1 times: one replaced by that of `other` in each block, none in the last."""
    blocks = own.repeat(own.shape[1] + 1, *[1] * own.dim())
    for unit in range(own.shape[1]):
        blocks[unit, :, unit] = other[:, unit]
    return blocks.flatten(0, 1)
