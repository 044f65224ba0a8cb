"""Compute the Fréchet distance between images and drawn ones with a network that the user supplies, as for FID.

raydis contains no weights. FID needs the Inception network of the TensorFlow implementation, which others publish as a
TorchScript file. A TorchScript file is a program: open only a file that you trust.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raydis.data.cache import cache_folder, fetch
from raydis.errors import ConfigError, MetricError
from raydis.metrics.frechet import frechet_distance
from raydis.store import Location


def load_feature_network(path: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """Return the network of a TorchScript file, a local path or s3:// URI, in eval mode.

    Raises:
        ConfigError: the file is missing or is no TorchScript.
        DataError, StoreError: it is in S3, and cannot be read.
    """
    if Location.parse(str(path)).folder is None:
        path = fetch(str(path), cache_folder(None), setting="evaluation.frechet_network")
    try:
        with warnings.catch_warnings():
            # PyTorch advises new files to use torch.export, but the published ones are TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(Path(path).expanduser()), map_location=device)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} is no TorchScript file ({reason}): save the network with torch.jit.save") from error
    return network.eval()


@torch.no_grad()
def features_of(network: nn.Module, batches: Iterable[Tensor]) -> np.ndarray:
    """Return the features (M, D), float64, that a network gives for batches of images (B, C, H, W).

    The network gets the images as they are: scale and resize them beforehand as it expects.

    Raises:
        MetricError: no images, or a network that does not return one row of features for each image.
    """
    found: list[np.ndarray] = []
    for images in batches:
        features = network(images)
        if not isinstance(features, Tensor) or features.flatten(1).shape[0] != len(images):
            raise MetricError("the feature network does not return one row for each image: return a tensor (B, D)")
        found.append(features.flatten(1).double().cpu().numpy())
    if not found:
        raise MetricError("no images to compare: give at least two")
    return np.concatenate(found)


def image_distance(network: nn.Module, images: Iterable[Tensor], drawn: Iterable[Tensor]) -> float:
    """Return the Fréchet distance between the features of two sets of images, each in batches (B, C, H, W)."""
    return frechet_distance(features_of(network, images), features_of(network, drawn))
