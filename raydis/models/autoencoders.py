"""First stages: maps between images and the latents that a diffusion model works on.

B batch, C H W image, P patch side, L latent channels, f the reduction, h = H/f and w = W/f.

All first stages are deterministic and stay frozen while a diffusion model is trained. Everything that they have learned
is in their state dict. `scale` gives latents unit standard deviation over the images of the fit, as in latent-diffusion
(arXiv 2112.10752, section 4.3.2), which computes it from the first batch instead of a sample.
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

FIT_CHUNK = 128  # number of images whose patches are held in float64 at once
START_IMAGES = 256  # number of images from whose latents the embeddings of a codebook are first drawn


class Pixel(nn.Module):
    """The identity, up to a scale: the latent is the image."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.latent_dim = image_channels
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def fit(self, images: Tensor) -> None:
        """Measure the scale on images (B, C, H, W) in [-1, 1]."""
        self.scale.copy_(1.0 / images.std().clamp_min(1e-6))

    def encode(self, images: Tensor) -> Tensor:
        """Scale images (B, C, H, W) to unit standard deviation."""
        return images * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Invert `encode`."""
        return latents / self.scale


class PatchPCA(nn.Module):
    """Principal components of non-overlapping image patches: (B, C, H, W) -> (B, L, H/P, W/P).

    Of all linear maps from a patch to L numbers, this one has the least mean squared error (Eckart-Young). Encoding and
    decoding are one strided convolution each.

    Args:
        image_channels: C.
        patch_size: P, px.
        latent_dim: L, at most C * P * P.
        whitening: channel l is divided by std_l ** whitening. With 0, channels keep the variances that they have in the
            images, so that mean colours dominate the denoising loss over shape and pose. With 1, every channel has unit
            variance and counts alike.
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
        """Fit to images (B, C, H, W) in [-1, 1], whose patches must vary in at least latent_dim directions."""
        chunks, count = images.split(FIT_CHUNK), images[:, 0].numel() // self.patch_size**2
        mean = torch.stack([self._patches(chunk).sum(0) for chunk in chunks]).sum(0) / count
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
        for chunk in chunks:
            centred = self._patches(chunk) - mean
            covariance.addmm_(centred.t(), centred, alpha=1.0 / count)
        values, vectors = torch.linalg.eigh(covariance)
        components = vectors.flip(1)[:, : self.latent_dim].t()
        # The sign of an eigenvector is arbitrary. We fix it, so that equal data gives equal latents on every machine.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        self.mean.copy_(mean.view_as(self.mean))
        self.components.copy_(components.reshape(self.components.shape))
        deviations = values.flip(0)[: self.latent_dim].clamp_min(1e-12).sqrt()
        deviations = deviations.clamp_min(1e-3 * deviations[0])  # so that whitening does not amplify rounding errors
        whitened = deviations ** (1.0 - self.whitening)
        scale = deviations**-self.whitening / whitened.square().mean().sqrt()
        self.scale.copy_(scale.view_as(self.scale))

    def _patches(self, images: Tensor) -> Tensor:
        """Cut images (B, C, H, W) into their patches, (B H/P W/P, C P P) in float64."""
        return F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2).flatten(0, 1).double()

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to latents (B, L, H/P, W/P) of unit mean square."""
        offset = (self.components * self.mean).sum((1, 2, 3))
        return (F.conv2d(images, self.components, stride=self.patch_size) - offset[:, None, None]) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Map square latents (B, L, H/P, W/P) to images (B, C, H, W), by the least-squares inverse of `encode`."""
        size = latents.shape[-1]
        image = F.conv_transpose2d(latents / self.scale, self.components, stride=self.patch_size)
        return image + self.mean.repeat(1, size, size)


class Autoencoder(nn.Module, abc.ABC):
    """A convolutional autoencoder; the learned first stages inherit from it.

    Args:
        image_channels: C.
        latent_dim: L.
        encoded_dim: channels of the encoder's output.
        stem_stride, model_dim, multipliers, num_blocks: sizes of both networks, see `coder`.
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
        """Initialise from images (B, C, H, W) in [-1, 1] what depends on them, such as a codebook, before training."""

    def fit_scale(self, latents: Tensor) -> None:
        """Measure the scale on raw latents (B, L, h, w)."""
        self.scale.copy_(1.0 / latents.std().clamp_min(1e-6))

    @abc.abstractmethod
    def raw(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to the encoder's output (B, L, h, w), which is not scaled yet."""

    @abc.abstractmethod
    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode images in training.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: standard normal, (B, L, h, w).

        Returns:
            reconstructions (B, C, H, W), and the loss of the latents, a scalar.
        """

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to latents (B, L, h, w) of unit standard deviation."""
        return self.raw(images) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, L, h, w) to images (B, C, H, W)."""
        return self.decode_raw(latents / self.scale)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Map latents (B, L, h, w) that are not scaled to images (B, C, H, W)."""
        return self.decoder(self.from_latent(latents))

    def decode_unrounded(self, latents: Tensor) -> Tensor:
        """Map latents (B, L, h, w) to images (B, C, H, W) as `decode` does, but without rounding to a codebook."""
        return self.decoder(self.from_latent(latents / self.scale))


class VqAutoencoder(Autoencoder):
    """An autoencoder with a codebook. As in latent-diffusion, `decode` rounds to embeddings, and `encode` does not."""

    def __init__(
        self, image_channels: int, *, latent_dim: int, num_embeddings: int, commitment: float = 0.25, **sizes
    ) -> None:
        super().__init__(image_channels, latent_dim=latent_dim, encoded_dim=latent_dim, **sizes)
        self.codebook = Codebook(num_embeddings, latent_dim, commitment)

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Draw the first embeddings from the latents that the untrained encoder gives to images."""
        self.codebook.fit(self.raw(images[:START_IMAGES]))

    def raw(self, images: Tensor) -> Tensor:
        return self.to_latent(self.encoder(images))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode images; see `Autoencoder`. The loss is the codebook's, and the noise is not used."""
        quantised, loss = self.codebook(self.raw(images))
        return super().decode_raw(quantised), loss

    def decode_raw(self, latents: Tensor) -> Tensor:
        return super().decode_raw(self.codebook.quantise(latents))


class KlAutoencoder(Autoencoder):
    """An autoencoder whose encoder returns a Gaussian. The latent is a sample of it in training, and its mean later."""

    def __init__(self, image_channels: int, *, latent_dim: int, **sizes) -> None:
        super().__init__(image_channels, latent_dim=latent_dim, encoded_dim=2 * latent_dim, **sizes)

    def raw(self, images: Tensor) -> Tensor:
        return self.to_latent(self.encoder(images)).chunk(2, dim=1)[0]

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode images; see `Autoencoder`.

        The loss is the Kullback-Leibler divergence from a standard normal, divided by the number of values of an image.
        """
        mean, log_variance = at_least_single(self.to_latent(self.encoder(images))).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum() / images.numel()
        return self.decode_raw(mean + noise * (0.5 * log_variance).exp()), divergence


FirstStage = Pixel | PatchPCA | Autoencoder
