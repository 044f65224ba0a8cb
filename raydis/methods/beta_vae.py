"""beta-VAE (Higgins et al., ICLR 2017): a variational autoencoder (VAE) whose KL divergence has the weight beta.

B batch, N units, C H W image.

The losses are those of disentanglement_lib. The reconstruction loss is the cross-entropy of a Bernoulli distribution
for each pixel and channel, on values in [0, 1]. It and the Kullback-Leibler (KL) divergence are summed over an image
and averaged over the batch. The value of a unit is the mean of its posterior.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Draws, Losses, Move, UnitMethod
from raydis.models.conv_vae import ConvDecoder, ConvEncoder
from raydis.models.precision import at_least_single


class BetaVae(UnitMethod):
    """Minimise the reconstruction loss + beta * KL.

    Args:
        encoder: a network with two heads of N numbers, mean and log variance.
        decoder: a network from N numbers to the logits of pixels.
        num_units: N.
        beta: weight of the KL divergence; with 1 this is the VAE.
    """

    unit_dim = 1

    def __init__(self, *, encoder: ConvEncoder, decoder: ConvDecoder, num_units: int, beta: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.num_units = num_units
        self.beta = beta
        self.register_quantiles(num_units)

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains both networks by Adam without weight decay, as published."""
        return [Move("vae", [self.encoder, self.decoder], weight_decay=0.0)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the standard normal noise (B, N) for sampling the posterior."""
        return {"noise": torch.randn(batch_size, self.num_units, generator=generator, device=generator.device)}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the loss and its two terms, in nats for each image."""
        mean, log_variance, sample = self.sample_posterior(batch.images, batch.draws["noise"])
        logits = self.decoder(sample)
        terms = {"reconstruction": bernoulli_loss(logits, batch.images), "kl": gaussian_kl(mean, log_variance)}
        return {"loss": terms["reconstruction"] + self.beta * terms["kl"], **terms}

    def sample_posterior(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, log variance and a sample, (B, N) each, of the posterior of images (B, C, H, W).

        The sample is the mean + the standard deviation * noise (B, N).
        """
        mean, log_variance = (at_least_single(head) for head in self.encoder(images))
        return mean, log_variance, mean + (0.5 * log_variance).exp() * noise

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the posterior means (B, N) of images (B, C, H, W) in [-1, 1]."""
        return self.encoder(images)[0]

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, N, 1) decode to: the means of their Bernoullis."""
        return 2.0 * at_least_single(self.decoder(codes.squeeze(-1))).sigmoid() - 1.0


def bernoulli_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Return the cross-entropy of logits and images in [-1, 1], both (B, C, H, W), in nats summed over an image.

    Values between 0 and 1 have an entropy of their own, below which the loss cannot fall.
    """
    targets = (images + 1.0) / 2.0
    return F.binary_cross_entropy_with_logits(logits.to(targets.dtype), targets, reduction="sum") / len(images)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of N(mean, exp(log_variance)), both (B, N), from N(0, 1), in nats summed over units."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1).mean()
