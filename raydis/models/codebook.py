"""Vector quantisation (arXiv 1711.00937): every pixel of a latent becomes the nearest of K learned codes.

B batch, L channels of the latent, h w its size, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.precision import at_least_single


class Codebook(nn.Module):
    """K codes of L numbers.

    Codes are drawn from latents once, by `fit`; one that no pixel is nearest to afterwards stays where it is.

    Args:
        num_codes: K.
        latent_dim: L.
        commitment: beta of eq. 3, the share of the loss that pulls latents to codes. (latent-diffusion's own code
            weighs the other term with it by default.)
    """

    def __init__(self, num_codes: int, latent_dim: int, commitment: float = 0.25) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(num_codes, latent_dim).uniform_(-1.0 / num_codes, 1.0 / num_codes))
        self.commitment = commitment

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Take pixels of latents (B, L, h, w) for codes, drawn by torch's global generator; all of them if too few."""
        pixels = latents.movedim(1, -1).flatten(0, -2)
        chosen = torch.randperm(len(pixels))[: len(self.codes)]
        self.codes[: len(chosen)] = pixels[chosen.to(pixels.device)]

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Latents (B, L, h, w) -> index of the nearest code of each pixel, (B, h, w)."""
        pixels = latents.movedim(1, -1).flatten(0, -2)
        distances = torch.addmm(self.codes.square().sum(1), pixels, self.codes.t(), alpha=-2.0)  # less |pixel|^2
        return distances.argmin(1).view(latents.shape[0], *latents.shape[2:])

    def quantise(self, latents: Tensor) -> Tensor:
        """Latents (B, L, h, w) -> their nearest codes (B, L, h, w)."""
        return F.embedding(self.nearest(latents), self.codes).movedim(-1, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, L, h, w) -> nearest codes, whose gradient goes straight to the latents, and the loss of eq. 3."""
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 would confuse neighbouring codes
            latents = at_least_single(latents)
            codes = self.quantise(latents)
            loss = F.mse_loss(codes, latents.detach()) + self.commitment * F.mse_loss(latents, codes.detach())
            return latents + (codes - latents).detach(), loss
