"""Vector quantisation (arXiv 1711.00937): replace every pixel of a latent by the nearest of K learned codes.

B batch, L channels of the latent, h w its size, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.precision import at_least_single


class Codebook(nn.Module):
    """K codes of L numbers.

    `fit` draws the codes from latents once. A code that is not nearest to any pixel gets no gradient and stays fixed.

    Args:
        num_codes: K.
        latent_dim: L.
        commitment: beta of equation 3, the weight of the term that pulls latents to codes. (By default, the code of
            latent-diffusion multiplies the other term by it.)
    """

    def __init__(self, num_codes: int, latent_dim: int, commitment: float = 0.25) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(num_codes, latent_dim).uniform_(-1.0 / num_codes, 1.0 / num_codes))
        self.commitment = commitment

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Draw the codes from the pixels of latents (B, L, h, w), with torch's global generator.

        If there are fewer pixels than codes, all are taken and the other codes stay as they are.
        """
        pixels = latents.movedim(1, -1).flatten(0, -2)
        chosen = torch.randperm(len(pixels))[: len(self.codes)]
        self.codes[: len(chosen)] = pixels[chosen.to(pixels.device)]

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Return the index of the nearest code, (B, h, w), for each pixel of latents (B, L, h, w)."""
        pixels = latents.movedim(1, -1).flatten(0, -2)
        distances = torch.addmm(
            self.codes.square().sum(1), pixels, self.codes.t(), alpha=-2.0
        )  # without |pixel|^2, which does not change the order
        return distances.argmin(1).view(latents.shape[0], *latents.shape[2:])

    def quantise(self, latents: Tensor) -> Tensor:
        """Round latents (B, L, h, w) to their nearest codes (B, L, h, w)."""
        return F.embedding(self.nearest(latents), self.codes).movedim(-1, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Round latents (B, L, h, w) to their nearest codes, with the straight-through gradient.

        Returns:
            the codes (B, L, h, w), and the loss of equation 3, a scalar.
        """
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 cannot tell neighbouring codes apart
            latents = at_least_single(latents)
            codes = self.quantise(latents)
            loss = F.mse_loss(codes, latents.detach()) + self.commitment * F.mse_loss(latents, codes.detach())
            return latents + (codes - latents).detach(), loss
