"""Networks that judge drawn images: two discriminators, and a perceptual distance by VGG16's features.

B batch, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from raydis.models.blocks import group_norm

# The indices of VGG16's convolutions in torchvision, block by block. Each block but the first halves the size before.
VGG16_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PatchDiscriminator(nn.Sequential):
    """A network from images (B, C, H, W) to logits (B, 1, h, w), one for each overlapping patch (arXiv 1611.07004).

    High logits mean a real image. Group norms replace the published batch norms, so that the result for an image does
    not depend on the other images of its batch.
    """

    def __init__(self, image_channels: int, channels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        dim = image_channels
        for index, out_dim in enumerate(channels):
            layers.append(nn.Conv2d(dim, out_dim, 4, stride=2, padding=1))
            layers += [group_norm(out_dim)] if index else []
            layers.append(nn.LeakyReLU(0.2))
            dim = out_dim
        super().__init__(*layers, nn.Conv2d(dim, 1, 3, padding=1))


class SpectralNorm(nn.Module):
    """Divide a weight by its largest singular value (arXiv 1802.05957), which power iteration estimates.

    PyTorch's own module iterates in each forward pass of training mode, so that its result depends on the number of
    parts in which a batch is computed. This one iterates when `iterate` is called.

    Args:
        weight: the weight as initialised, (out, ...).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("left", F.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("right", F.normalize(torch.randn_like(matrix[0]), dim=0))
        self.left: Tensor
        self.right: Tensor
        self.iterate(matrix, 15)

    @torch.no_grad()
    def iterate(self, weight: Tensor, count: int = 1) -> None:
        """Improve the estimates of the singular vectors of a weight (out, ...) by some iterations."""
        matrix = weight.flatten(1)
        for _ in range(count):
            self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
            self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (out, ...), divided. The singular vectors are constants."""
        norm = (weight.flatten(1) * (self.left[:, None] * self.right)).sum()
        return weight / norm


class ImageDiscriminator(nn.Sequential):
    """A network from images (B, C, H, W) to logits (B, 1). High logits mean a real image.

    It is the discriminator of InfoGAN-CR (Lin et al., arXiv 1906.06034) without its other heads: convolutions of 4 px
    and 32, 32, 64 and 64 channels, and a dense layer of 128, with leaky ReLUs, all with spectral norm. For three
    channels and 64 px it has 247,745 parameters.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
    """

    def __init__(self, image_size: int, image_channels: int) -> None:
        layers: list[nn.Module] = []
        for in_dim, out_dim in pairwise((image_channels, 32, 32, 64, 64)):
            layers += [nn.Conv2d(in_dim, out_dim, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Flatten(), nn.Linear(64 * (image_size // 16) ** 2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)]
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                register_parametrization(layer, "weight", SpectralNorm(layer.weight))

    def iterate(self) -> None:
        """Improve the estimates of the spectral norms by one iteration. Call this once in each training step."""
        for weight in self.modules():
            if isinstance(weight, ParametrizationList):
                for norm in weight:
                    assert isinstance(norm, SpectralNorm)
                    assert isinstance(weight.original, Tensor)
                    norm.iterate(weight.original)


class PerceptualDistance(nn.Module):
    """The mean squared distance of VGG16's unit-length features, summed over its five blocks (arXiv 1801.03924, eq. 1).

    All channels have the same weight (w_l = 1). The user supplies the weights of VGG16. They are frozen, and no part of
    the state dict.

    Args:
        weights: `features.N.weight` and `features.N.bias` of the convolutions; other tensors are ignored.

    Raises:
        ValueError: a convolution is missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for number in (number for block in VGG16_BLOCKS for number in block):
            for part in ("weight", "bias"):
                name = f"features.{number}.{part}"
                if name not in weights:
                    raise ValueError(f"there is no {name}")
                self.register_buffer(f"{part}_{number}", weights[name].float(), persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the unit-length features of each block, for images (B, 1 or 3, H, W) in [-1, 1] of at least 16 px."""
        h = ((images + 1.0) / 2.0 - self.mean) / self.std
        found = []
        for index, block in enumerate(VGG16_BLOCKS):
            h = F.max_pool2d(h, 2) if index else h
            for number in block:
                weight, bias = self.get_buffer(f"weight_{number}"), self.get_buffer(f"bias_{number}")
                h = F.relu(F.conv2d(h, weight, bias, padding=1))
            found.append(F.normalize(h, dim=1))
        return found

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance between two batches of images (B, C, H, W), a scalar, at least 0."""
        pairs = zip(self.features(images), self.features(others), strict=True)
        return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in pairs]).sum()
