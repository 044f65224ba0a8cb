"""The convolutional encoders and decoder of the variational autoencoders (VAEs).

B batch, C H W image.

`ConvEncoder` and `ConvDecoder` are those of disentanglement_lib, with the sizes published for images of 64 px
(Locatello et al., arXiv 1811.12359, table 1). With three channels and 10 outputs for each head, the encoder with its
two heads has 310,228 parameters and the decoder 382,339. For other image sizes, only the layers next to the flattened
feature map change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
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
        self.trunk = conv_trunk(image_size, image_channels, hidden_dim, kernel_sizes=(4, 4, 2, 2))
        self.heads = nn.ModuleList(nn.Linear(hidden_dim, width) for width in head_dims)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to one tensor (B, width) for each head."""
        hidden = self.trunk(images)
        return tuple(head(hidden) for head in self.heads)


class SplitEncoder(nn.Module):
    """Four strided convolutions and a dense layer, followed by a network of its own for each part of the latent.

    The convolutions and the dense layer, which has no activation, are those of FactorVAE in InfoGAN-CR's repository
    (Lin et al., arXiv 1906.06034): all kernels are 4 pixels wide. Each network has one hidden layer.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        part_dims: number of values of each part.
        hidden_dim: width of the dense layers.
    """

    def __init__(self, image_size: int, image_channels: int, part_dims: Sequence[int], hidden_dim: int = 128) -> None:
        super().__init__()
        self.trunk = conv_trunk(image_size, image_channels, hidden_dim, kernel_sizes=(4, 4, 4, 4))[:-1]
        self.heads = nn.ModuleList(dense_network(hidden_dim, (hidden_dim,), 2 * width) for width in part_dims)

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Map images (B, C, H, W) to the mean and the log variance, (B, width) each, of every part."""
        hidden = self.trunk(images)
        moments = (head(hidden).chunk(2, dim=1) for head in self.heads)
        return tuple((mean, log_variance) for mean, log_variance in moments)


class PairEncoder(nn.Module):
    """Embed the change from one image to another: the convolutions of `ConvEncoder` on both images' channels.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        embedding_dim: width of the embedding.
        hidden_dim: width of the dense layer.
    """

    def __init__(self, image_size: int, image_channels: int, embedding_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.encoder = ConvEncoder(image_size, 2 * image_channels, (embedding_dim,), hidden_dim)
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> Tensor:
        """The learned length of an embedding that stands for a change of a unit by 1: positive."""
        return self.log_scale.exp()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Map two batches of images (B, C, H, W) to embeddings (B, embedding_dim) of the pairs."""
        return self.encoder(torch.cat([images, others], dim=1))[0]


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


def conv_trunk(
    image_size: int, image_channels: int, hidden_dim: int, *, kernel_sizes: tuple[int, int, int, int]
) -> nn.Sequential:
    """Return four convolutions of 32, 32, 64 and 64 channels that halve their input, and a dense layer, with ReLUs.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        hidden_dim: width of the dense layer.
        kernel_sizes: width of each convolution's kernel, px: 2 or 4.
    """
    layers, dims = list[nn.Module](), (image_channels, 32, 32, 64, 64)
    for (in_dim, out_dim), size in zip(pairwise(dims), kernel_sizes, strict=True):
        layers += [nn.Conv2d(in_dim, out_dim, size, stride=2, padding=size // 2 - 1), nn.ReLU()]
    side = image_size // REDUCTION
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * side**2, hidden_dim), nn.ReLU())


def dense_network(input_dim: int, hidden_dims: Sequence[int], output_dim: int) -> nn.Sequential:
    """Return dense layers with leaky ReLUs (slope 0.2) between them, such as FactorVAE's discriminator."""
    dims = (input_dim, *hidden_dims)
    layers = [part for pair in pairwise(dims) for part in (nn.Linear(*pair), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, nn.Linear(dims[-1], output_dim))


def glorot(module: nn.Module) -> None:
    """Draw the weights of a dense or convolutional layer as TensorFlow 1 does, for `nn.Module.apply`.

    They are uniform, by the rule of Glorot and Bengio (AISTATS 2010, eq. 16), and biases are 0. PyTorch draws smaller
    weights, and random biases.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
