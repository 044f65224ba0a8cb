"""What judges a reconstruction beside its absolute error: a patch discriminator, and the distance of VGG's features.

B batch, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import group_norm

# torchvision's numbers of VGG16's convolutions, block by block; each block but the first begins with a halving.
VGG16_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PatchDiscriminator(nn.Sequential):
    """Images (B, C, H, W) -> verdicts (B, 1, h, w), one an overlapping patch; high for real (arXiv 1611.07004).

    Group norms stand in for the published batch norms, so that a verdict does not depend on batch mates.
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
    """Mean squared distance of VGG16's unit-length features, summed over its five blocks (arXiv 1801.03924, eq. 1).

    All channels count alike (w_l = 1). The weights are the user's own and frozen: no part of the state dict.

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
        """Images (B, 1 or 3, H, W) in [-1, 1], H and W at least 16 -> unit-length features of each block."""
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
        """The distance of two batches (B, C, H, W), a scalar, at least 0."""
        pairs = zip(self.features(images), self.features(others), strict=True)
        return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in pairs]).sum()
