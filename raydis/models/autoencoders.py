"""First stages: maps between images and the latents that the diffusion model works on.

B batch, C H W image, P patch side, L latent channels, f the reduction, h = H/f and w = W/f. All are deterministic and
frozen while a diffusion model learns; whatever they learnt is in their state dict. `scale` brings latents to unit
standard deviation over the fitting images (arXiv 2112.10752, section 4.3.2; computed once over a sample instead of the
first batch).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models import coder
from raydis.models.codebook import Codebook
from raydis.models.precision import at_least_single

FIT_CHUNK = 128  # images whose patches are held in float64 at once
START_IMAGES = 256  # whose latents a codebook's first codes are drawn from


class Pixel(nn.Module):
    """Identity: the latent is the image."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.latent_dim = image_channels
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def fit(self, images: Tensor) -> None:
        """Measure the scale on images (B, C, H, W) in [-1, 1]."""
        self.scale.copy_(1.0 / images.std().clamp_min(1e-6))

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) of unit standard deviation."""
        return images * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return latents / self.scale


class PatchPCA(nn.Module):
    """Principal components of non-overlapping image patches: (B, C, H, W) -> (B, L, H/P, W/P).

    The best linear map of patches to L numbers in mean squared error (Eckart-Young); encoding and decoding are
    one strided convolution each.

    Args:
        image_channels: C.
        patch_size: P, px.
        latent_dim: L, at most C * P * P.
        whitening: channel l is divided by std_l ** whitening. 0 keeps the image's own weights, under which mean colours
            drown shape and pose in noise; at 1 every channel has unit variance and the denoising loss hears them all.
    """

    def __init__(self, image_channels: int, patch_size: int, latent_dim: int, whitening: float = 1.0) -> None:
        super().__init__()
        inputs = image_channels * patch_size**2
        if latent_dim > inputs:
            raise ValueError(f"latent_dim={latent_dim} must not exceed the {inputs} values of a patch")
        self.latent_dim = latent_dim
        self.patch_size = patch_size
        self.whitening = whitening
        self.register_buffer("mean", torch.zeros(image_channels, patch_size, patch_size))
        self.register_buffer("components", torch.zeros(latent_dim, image_channels, patch_size, patch_size))
        self.register_buffer("scale", torch.ones(latent_dim, 1, 1))
        self.mean: Tensor
        self.components: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit to images (B, C, H, W) in [-1, 1]; B patches' covariance must have latent_dim directions at least."""
        chunks, count = images.split(FIT_CHUNK), images[:, 0].numel() // self.patch_size**2
        mean = torch.stack([self._patches(chunk).sum(0) for chunk in chunks]).sum(0) / count
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
        for chunk in chunks:
            centred = self._patches(chunk) - mean
            covariance.addmm_(centred.t(), centred, alpha=1.0 / count)
        values, vectors = torch.linalg.eigh(covariance)
        components = vectors.flip(1)[:, : self.latent_dim].t()
        # The sign of an eigenvector is arbitrary: fix it, so that equal data gives equal latents everywhere.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        self.mean.copy_(mean.view_as(self.mean))
        self.components.copy_(components.reshape(self.components.shape))
        deviations = values.flip(0)[: self.latent_dim].clamp_min(1e-12).sqrt()
        deviations = deviations.clamp_min(1e-3 * deviations[0])  # whitening shall not blow up rounding errors
        whitened = deviations ** (1.0 - self.whitening)
        scale = deviations**-self.whitening / whitened.square().mean().sqrt()
        self.scale.copy_(scale.view_as(self.scale))

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> all patches of all images in float64, (B H/P W/P, C P P)."""
        return F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2).flatten(0, 1).double()

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, L, H/P, W/P) of unit mean square."""
        offset = (self.components * self.mean).sum((1, 2, 3))
        return (F.conv2d(images, self.components, stride=self.patch_size) - offset[:, None, None]) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, H/P, W/P), square -> (B, C, H, W); the least-squares inverse of `encode`."""
        size = latents.shape[-1]
        image = F.conv_transpose2d(latents / self.scale, self.components, stride=self.patch_size)
        return image + self.mean.repeat(1, size, size)


class Autoencoder(nn.Module, abc.ABC):
    """Convolutional autoencoder: what the learned first stages share.

    Args:
        image_channels: C.
        latent_dim: L.
        encoded_dim: channels that the encoder ends in.
        stem_stride, model_dim, multipliers, num_blocks: of the networks, see `coder`.
    """

    def __init__(
        self,
        image_channels: int,
        *,
        latent_dim: int,
        encoded_dim: int,
        stem_stride: int,
        model_dim: int,
        multipliers: Sequence[int],
        num_blocks: int,
    ) -> None:
        super().__init__()
        sizes = {"stem_stride": stem_stride, "model_dim": model_dim, "multipliers": multipliers}
        self.latent_dim = latent_dim
        self.reduction = stem_stride << (len(multipliers) - 1)
        self.encoder = coder.encoder(image_channels, encoded_dim, num_blocks=num_blocks, **sizes)
        self.to_latent = nn.Conv2d(encoded_dim, encoded_dim, 1)
        self.from_latent = nn.Conv2d(latent_dim, latent_dim, 1)
        self.decoder = coder.decoder(image_channels, latent_dim, num_blocks=num_blocks, **sizes)
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def start(self, images: Tensor) -> None:
        """Set up before training what depends on images (B, C, H, W) in [-1, 1]: a codebook. Others have nothing."""

    def fit_scale(self, latents: Tensor) -> None:
        """Measure the scale on raw latents (B, L, h, w)."""
        self.scale.copy_(1.0 / latents.std().clamp_min(1e-6))

    @abc.abstractmethod
    def raw(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> latents (B, L, h, w) as the encoder gives them, before `scale`."""

    @abc.abstractmethod
    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A training pass.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: standard normal, (B, L, h, w).

        Returns:
            reconstructions (B, C, H, W), and the loss of the latents, a scalar.
        """

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, L, h, w) of unit standard deviation."""
        return self.raw(images) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, C, H, W)."""
        return self.decode_raw(latents / self.scale)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents (B, L, h, w) -> images (B, C, H, W)."""
        return self.decoder(self.from_latent(latents))


class VqAutoencoder(Autoencoder):
    """Autoencoder with a codebook; `encode` stops before it and `decode` begins with it, as in latent-diffusion."""

    def __init__(
        self, image_channels: int, *, latent_dim: int, num_codes: int, commitment: float = 0.25, **sizes
    ) -> None:
        super().__init__(image_channels, latent_dim=latent_dim, encoded_dim=latent_dim, **sizes)
        self.codebook = Codebook(num_codes, latent_dim, commitment)

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Draw the codes from the untrained encoder's latents of images."""
        self.codebook.fit(self.raw(images[:START_IMAGES]))

    def raw(self, images: Tensor) -> Tensor:
        return self.to_latent(self.encoder(images))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.forward`; the loss is the codebook's, the noise is not used."""
        codes, loss = self.codebook(self.raw(images))
        return super().decode_raw(codes), loss

    def decode_raw(self, latents: Tensor) -> Tensor:
        return super().decode_raw(self.codebook.quantise(latents))


class KlAutoencoder(Autoencoder):
    """Autoencoder whose encoder gives a Gaussian; the latent is its mean, and a draw from it while training."""

    def __init__(self, image_channels: int, *, latent_dim: int, **sizes) -> None:
        super().__init__(image_channels, latent_dim=latent_dim, encoded_dim=2 * latent_dim, **sizes)

    def raw(self, images: Tensor) -> Tensor:
        return self.to_latent(self.encoder(images)).chunk(2, dim=1)[0]

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.forward`; the loss is the divergence from a standard normal per value of an image."""
        mean, log_variance = at_least_single(self.to_latent(self.encoder(images))).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum() / images.numel()
        return self.decode_raw(mean + noise * (0.5 * log_variance).exp()), divergence


FirstStage = Pixel | PatchPCA | Autoencoder
