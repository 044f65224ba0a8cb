"""The convolutional encoder and decoder of disentanglement_lib, for the variational autoencoders (VAEs).

B batch, C H W image.

The sizes are those published for images of 64 px (Locatello et al., arXiv 1811.12359, table 1). With three channels and
10 outputs for each head, the encoder with its two heads has 310,228 parameters and the decoder 382,339. For other
image sizes, only the layers next to the flattened feature map change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

REDUCTION = 16  # four convolutions, each of which halves


class ConvEncoder(nn.Module):
    """Four strided convolutions and a dense layer, followed by one linear head for each output.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        head_dims: width of each output.
        hidden_dim: width of the dense layer.
    """

    def __init__(self, image_size: int, image_channels: int, head_dims: Sequence[int], hidden_dim: int = 256) -> None:
        super().__init__()
        side = image_size // REDUCTION
        self.trunk = nn.Sequential(
            *(nn.Conv2d(image_channels, 32, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 2, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 2, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * side**2, hidden_dim), nn.ReLU()),
        )
        self.heads = nn.ModuleList(nn.Linear(hidden_dim, width) for width in head_dims)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to one tensor (B, width) for each head."""
        hidden = self.trunk(images)
        return tuple(head(hidden) for head in self.heads)


class ConvDecoder(nn.Module):
    """Two dense layers and four transposed convolutions.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        input_dim: number of values that an image is decoded from.
        hidden_dim: width of the first dense layer.
    """

    def __init__(self, image_size: int, image_channels: int, input_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        side = image_size // REDUCTION
        self.layers = nn.Sequential(
            *(nn.Linear(input_dim, hidden_dim), nn.ReLU()),
            *(nn.Linear(hidden_dim, 64 * side**2), nn.ReLU(), nn.Unflatten(1, (64, side, side))),
            *(nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1), nn.ReLU()),
            nn.ConvTranspose2d(32, image_channels, 4, stride=2, padding=1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, input_dim) to the logits of pixels, (B, C, H, W)."""
        return self.layers(latents)


def dense_network(input_dim: int, hidden_dims: Sequence[int], output_dim: int) -> nn.Sequential:
    """Return dense layers with leaky ReLUs (slope 0.2) between them, such as FactorVAE's discriminator."""
    dims = (input_dim, *hidden_dims)
    layers = [part for pair in pairwise(dims) for part in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, nn.Linear(dims[-1], output_dim))
