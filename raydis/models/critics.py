"""Two networks that judge reconstructed images: a patch discriminator, and a perceptual distance by VGG16's features.

B batch, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
