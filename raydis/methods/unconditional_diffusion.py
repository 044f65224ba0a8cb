"""A diffusion model without a condition (Ho et al., arXiv 2006.11239), on the latents of a first stage.

B batch, C H W image, L h w latent.

It has no units. A run trains it, and the methods that are built on it borrow its weights; see `Method.pretrained`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from raydis.diffusion.denoising import Denoising, add_noise
from raydis.methods.contract import Batch, Draws, Losses, Method, Move
from raydis.models.autoencoders import Autoencoder, FirstStage
from raydis.models.shift_unet import UnconditionalUNet


class UnconditionalDiffusion(Method):
    """A U-Net that predicts the noise in noisy latents, trained by the error of this prediction.

    Args:
        unet, first_stage: the networks. Their sizes must agree.
        denoising: noise schedule, training times and loss.
        latent_size: h = w, px.
    """

    def __init__(
        self, *, unet: UnconditionalUNet, first_stage: FirstStage, denoising: Denoising, latent_size: int
    ) -> None:
        super().__init__()
        self.unet = unet
        self.first_stage = first_stage.requires_grad_(False)
        self.denoising = denoising
        self.latent_shape = (first_stage.latent_dim, latent_size, latent_size)

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The first stage if it is a learned one, else None."""
        return self.first_stage if isinstance(self.first_stage, Autoencoder) else None

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains the U-Net."""
        return [Move("denoise", [self.unet])]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise (B, L, h, w) and the timesteps (B,) of one step."""
        noise = torch.randn(batch_size, *self.latent_shape, generator=generator, device=generator.device)
        return {"timesteps": self.denoising.draw_timesteps(batch_size, generator), "noise": noise}

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit the first stage, if it has a closed form."""
        if not isinstance(self.first_stage, Autoencoder):
            self.first_stage.fit(torch.cat(list(parts)))

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the denoising loss of a batch."""
        timesteps, noise = batch.draws["timesteps"], batch.draws["noise"]
        latents = self.latents(batch)
        alpha_bar = self.denoising.alpha_bars[timesteps]
        predicted = self.unet(add_noise(latents, noise, alpha_bar), timesteps)
        return {"loss": self.denoising.loss(predicted, self.denoising.target(latents, noise, alpha_bar))}

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents z_0 (B, L, h, w) of a batch: those that it holds, or else those of its images."""
        if batch.latents is not None:
            return batch.latents * self.first_stage.scale
        with torch.autocast(batch.images.device.type, enabled=False):
            return self.first_stage.encode(batch.images)
