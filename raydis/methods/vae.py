"""Variational autoencoders (VAEs) with a closed-form regulariser: beta-VAE, AnnealedVAE, DIP-VAE I and II, beta-TCVAE.

B batch, N units, C H W image.

The losses are those of disentanglement_lib (Locatello et al., arXiv 1811.12359). The reconstruction loss is the
cross-entropy of a Bernoulli distribution for each pixel and channel, on values in [0, 1]; colours are treated in the
same way as black and white. It and the Kullback-Leibler (KL) divergence are summed over an image and averaged over the
batch. Each method adds a regulariser of its own. The value of a unit is the mean of its posterior.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Draws, Losses, Move, UnitMethod
from raydis.models.conv_vae import ConvDecoder, ConvEncoder
from raydis.models.precision import at_least_single


class Posterior(NamedTuple):
    """The posteriors of a batch of images, (B, N) each: N(mean, exp(log_variance)), and a sample of each."""

    mean: Tensor
    log_variance: Tensor
    sample: Tensor


class Vae(UnitMethod, abc.ABC):
    """Minimise the reconstruction loss + a regulariser of the posteriors.

    Args:
        encoder: a network from images in [0, 1] to two heads of N numbers, mean and log variance.
        decoder: a network from N numbers to the logits of pixels.
        num_units: N.
    """

    unit_dim = 1
    couples_images = False  # whether the regulariser of an image depends on the other images of its batch

    def __init__(self, *, encoder: ConvEncoder, decoder: ConvDecoder, num_units: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.num_units = num_units
        self.register_quantiles(num_units)

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains both networks by Adam without weight decay, as published."""
        return [Move("vae", [self.encoder, self.decoder], weight_decay=0.0, couples=self.couples_images)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the standard normal noise (B, N) for sampling the posterior."""
        return {"noise": torch.randn(batch_size, self.num_units, generator=generator, device=generator.device)}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the loss and its terms, in nats for each image."""
        posterior = self.sample_posterior(batch.images, batch.draws["noise"])
        reconstruction = bernoulli_loss(self.decoder(posterior.sample), batch.images)
        kl = gaussian_kl(posterior.mean, posterior.log_variance)
        regulariser, terms = self.regularise(posterior, kl, batch.draws)
        return {"loss": reconstruction + regulariser, "reconstruction": reconstruction, "kl": kl, **terms}

    @abc.abstractmethod
    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return the regulariser, a scalar, and further terms to report.

        Args:
            posterior: of the images of the batch.
            kl: its mean divergence.
            draws: the random numbers of the step.
        """

    def sample_posterior(self, images: Tensor, noise: Tensor) -> Posterior:
        """Return the posteriors of images (B, C, H, W). The sample is the mean + the deviation * noise (B, N)."""
        mean, log_variance = (at_least_single(head) for head in self.encoder(zero_to_one(images)))
        return Posterior(mean, log_variance, mean + (0.5 * log_variance).exp() * noise)

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the posterior means (B, N) of images (B, C, H, W) in [-1, 1]."""
        return self.encoder(zero_to_one(images))[0]

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, N, 1) decode to: the means of their Bernoullis."""
        return bernoulli_means(self.decoder(codes.squeeze(-1)))


class BetaVae(Vae):
    """beta-VAE (Higgins et al., ICLR 2017): the regulariser is beta * KL.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        beta: weight of the KL divergence; with 1 this is the VAE.
    """

    def __init__(self, *, encoder: ConvEncoder, decoder: ConvDecoder, num_units: int, beta: float = 1.0) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.beta = beta

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return beta * KL."""
        return self.beta * kl, {}


class AnnealedVae(Vae):
    """AnnealedVAE (Burgess et al., arXiv 1804.03599, eq. 8): the regulariser is gamma * |KL - C|.

    The capacity C rises linearly from 0, so that the units take in the image a few nats at a time. KL is the mean of a
    whole batch, as in disentanglement_lib, which couples its images.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        gamma: weight of the distance between the divergence and the capacity.
        max_capacity: C after it has risen, in nats.
        capacity_share: share of the training budget, in (0, 1], during which C rises.
    """

    couples_images = True

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        num_units: int,
        gamma: float,
        max_capacity: float,
        capacity_share: float,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.gamma = gamma
        self.max_capacity = max_capacity
        self.capacity_share = capacity_share
        self.register_buffer("capacity", torch.zeros(()), persistent=False)  # C of this step
        self.capacity: Tensor

    def begin_step(self, share: float) -> None:
        """Set the capacity of the next step."""
        self.capacity.fill_(self.max_capacity * min(share / self.capacity_share, 1.0))

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return gamma * |KL - C|, and C."""
        return self.gamma * (kl - self.capacity).abs(), {"capacity": self.capacity}


class DipVae(Vae):
    """DIP-VAE I and II (Kumar et al., arXiv 1711.00848): the covariance of the units is to be the identity matrix.

    The regulariser is KL + w * (the squared covariances of two different units + f * the squared distance of each
    variance from 1). Both triangles of the covariance matrix count, as in disentanglement_lib.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        covariance_of: "mean" for the covariance of the posterior means (DIP-VAE-I), "sample" for that of samples of the
            posteriors, which adds the mean variance of the posteriors (DIP-VAE-II).
        off_diagonal_weight: w, lambda_od in the paper.
        diagonal_factor: f, the ratio lambda_d / lambda_od.
    """

    couples_images = True

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        num_units: int,
        covariance_of: Literal["mean", "sample"],
        off_diagonal_weight: float,
        diagonal_factor: float,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.covariance_of = covariance_of
        self.off_diagonal_weight = off_diagonal_weight
        self.diagonal_factor = diagonal_factor

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return KL + the penalty of the covariance, and that penalty."""
        covariance = covariance_of(posterior.mean)
        if self.covariance_of == "sample":
            covariance = covariance + posterior.log_variance.exp().mean(0).diag()
        variances = covariance.diagonal()
        off_diagonal = (covariance - variances.diag()).square().sum()
        diagonal = (variances - 1.0).square().sum()
        penalty = self.off_diagonal_weight * (off_diagonal + self.diagonal_factor * diagonal)
        return kl + penalty, {"covariance_penalty": penalty}


class BetaTcVae(Vae):
    """beta-TCVAE (Chen et al., arXiv 1802.04942): the regulariser is KL + (beta - 1) * TC, the total correlation.

    Args:
        encoder, decoder, num_units: as in `Vae`.
        beta: weight of the total correlation, of which KL contains one; with 1 this is the VAE.
    """

    couples_images = True

    def __init__(self, *, encoder: ConvEncoder, decoder: ConvDecoder, num_units: int, beta: float) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_units=num_units)
        self.beta = beta

    def regularise(self, posterior: Posterior, kl: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return KL + (beta - 1) * TC, and TC."""
        estimate = total_correlation(posterior)
        return kl + (self.beta - 1.0) * estimate, {"total_correlation": estimate}


def zero_to_one(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as values in [0, 1], which the published networks read."""
    return (images + 1.0) / 2.0


def bernoulli_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Return the cross-entropy of logits and images in [-1, 1], both (B, C, H, W), in nats summed over an image.

    Values between 0 and 1 have an entropy of their own, below which the loss cannot fall.
    """
    targets = zero_to_one(images)
    return F.binary_cross_entropy_with_logits(logits.to(targets.dtype), targets, reduction="sum") / len(images)


def bernoulli_means(logits: Tensor) -> Tensor:
    """Return the means of the Bernoullis with these logits (B, C, H, W), as images in [-1, 1]."""
    return 2.0 * at_least_single(logits).sigmoid() - 1.0


def gaussian_kls(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence (B, N) of each N(mean, exp(log_variance)) from N(0, 1), in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of N(mean, exp(log_variance)), both (B, N), from N(0, 1), in nats summed over units."""
    return gaussian_kls(mean, log_variance).sum(1).mean()


def covariance_of(values: Tensor) -> Tensor:
    """Return the covariance matrix (N, N) of values (B, N), with the divisor B, as in disentanglement_lib."""
    centred = values - values.mean(0)
    return (centred[:, :, None] * centred[:, None]).mean(0)  # a matrix product would be rounded by autocast


def total_correlation(posterior: Posterior) -> Tensor:
    """Return disentanglement_lib's estimate of the total correlation of the units, in nats.

    The density of the aggregate posterior at a sample is estimated from the posteriors of the batch. The estimate
    leaves out the constants of the logarithms, so that it is (N - 1) ln B too low: -(N - 1) ln B for posteriors that
    are all the same. Only differences mean something.
    """
    mean, log_variance, sample = posterior
    distance = (sample[:, None] - mean).square() * (-log_variance).exp()  # (B, B, N): samples by posteriors
    densities = -0.5 * (distance + log_variance + math.log(2.0 * math.pi))
    joint = densities.sum(2).logsumexp(1)
    product = densities.logsumexp(1).sum(1)
    return (joint - product).mean()
