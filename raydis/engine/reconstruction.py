"""Measure how well a trained method reconstructs images: PSNR, SSIM, and the Fréchet distance.

B batch, N units, D unit width, L h w latent.

A method with units draws each image again from the image's own codes. What no unit describes is not known to the
drawing: a method that draws from noise starts from noise of the seed, another one for each image, and samples with the
default sampler and number of steps; a residual that a method encodes beside its units is drawn from its prior. PSNR and
SSIM thus say what the units alone hold of an image. With noise of the seed, the Fréchet distance is the number that
EncDiff and DyGA+SD report as FID, except for the sampler: it compares images with images that are drawn from codes of
the training set. It needs many images (papers use 10,000 to 50,000), because it is too high for few.

A first stage encodes and decodes, without noise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from raydis.config.train import EvaluationConfig
from raydis.data import Loader, denormalise
from raydis.diffusion.samplers import DEFAULT_SAMPLER
from raydis.engine.frechet import features_of, load_feature_network
from raydis.errors import ConfigError, MetricError
from raydis.methods.contract import Method, UnitMethod
from raydis.metrics.frechet import frechet_distance
from raydis.metrics.reconstruction import WINDOW, Reconstruction, psnr, ssim

NUM_OF_FIRST_STAGE = 1024
PEAK = 2.0  # of images in [-1, 1]

log = logging.getLogger(__name__)


def check_reconstructable(method: Method, loader: Loader, config: EvaluationConfig) -> None:
    """Check before training that `measure_reconstruction` can do what the configuration asks for.

    Raises:
        ConfigError: reconstructions of a method that has none, more than there are images, or a network that is no
            TorchScript or returns no features for 8-bit RGB images.
        DataError, StoreError: the network is in S3 and cannot be read.
    """
    if not config.num_reconstructions:
        return
    if config.num_reconstructions > len(loader.dataset):
        raise ConfigError(
            f"evaluation.num_reconstructions={config.num_reconstructions}, but the data set has {len(loader.dataset)} "
            "images: lower it"
        )
    image = loader.gather(np.zeros(1, np.int64))
    if not isinstance(method, UnitMethod) and method.reconstruct(image) is None:
        raise ConfigError(
            f"evaluation.num_reconstructions={config.num_reconstructions}, but {type(method).__name__} reconstructs no "
            "images: remove it"
        )
    if config.frechet_network is not None:
        network = load_feature_network(config.frechet_network, device=loader.device)
        try:
            features_of(network, [_pixels(image).expand(2, -1, -1, -1)])
        except (RuntimeError, MetricError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"evaluation.frechet_network={config.frechet_network} gives no features for images of type uint8 and "
                f"shape (B, 3, H, W) ({reason}): wrap it as raydis/metrics/README.md shows"
            ) from error


def measure_reconstruction(method: Method, loader: Loader, config: EvaluationConfig) -> Reconstruction | None:
    """Measure the reconstructions of images that are spread evenly over the data set.

    Returns:
        The numbers; None if none are asked for, if the method has no reconstructions or is not ready, or if they are
        not finite.
    """
    has_units = isinstance(method, UnitMethod)
    default = 0 if has_units else min(NUM_OF_FIRST_STAGE, len(loader.dataset))
    number = default if config.num_reconstructions is None else config.num_reconstructions
    if number == 0 or (has_units and method.not_ready() is not None):
        return None
    path = config.frechet_network
    network = None if path is None else load_feature_network(path, device=loader.device)
    indices = np.linspace(0, len(loader.dataset) - 1, number).astype(np.int64)
    ratios, likenesses, features = list[np.ndarray](), list[np.ndarray](), list[tuple[np.ndarray, np.ndarray]]()
    for images, drawn in _pairs(method, loader.gather_in_parts(indices), seed=config.seed):
        pair = images.cpu().numpy(), drawn.float().cpu().numpy()
        ratios.append(psnr(*pair, peak=PEAK))
        if min(images.shape[2:]) >= WINDOW:
            likenesses.append(ssim(*pair, peak=PEAK))
        if network is not None:
            features.append((features_of(network, [_pixels(images)]), features_of(network, [_pixels(drawn)])))
    if not ratios:
        return None
    if not np.isfinite(found := np.concatenate(ratios)).all():
        log.warning("some reconstructions are not finite, so no PSNR is reported: lower train.learning_rate")
        return None
    return Reconstruction(
        psnr=float(found.mean()),
        ssim=float(np.concatenate(likenesses).mean()) if likenesses else None,
        frechet_distance=frechet_distance(*map(np.concatenate, zip(*features, strict=True))) if features else None,
    )


@torch.no_grad()
def _pairs(method: Method, parts: Iterable[Tensor], *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, H, W) and their reconstructions, in [-1, 1]; nothing if the method has none."""
    generator = torch.Generator().manual_seed(seed)  # on the host: the noise is the same for every device
    was_training = method.training
    method.eval()
    for images in parts:
        drawn = _redrawn(method, images, generator) if isinstance(method, UnitMethod) else method.reconstruct(images)
        if drawn is None:
            break
        yield images, drawn
    method.train(was_training)


def _redrawn(method: UnitMethod, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1], drawn from their codes and from noise of the generator."""
    codes, shape, steps = method.encode(images), method.noise_shape, method.default_steps
    noise = None if shape is None else torch.randn(len(images), *shape, generator=generator).to(images.device)
    sampling = (None, None) if steps is None else (steps, DEFAULT_SAMPLER)
    return method.decode(codes, noise, *sampling)


def _pixels(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1] as uint8 (B, 3, H, W), which networks for FID expect."""
    return denormalise(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
