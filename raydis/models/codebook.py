"""Vector quantisation (arXiv 1711.00937): replace every pixel of a latent by the nearest of K learned embeddings.

B batch, L channels of the latent, h w its size, K embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.precision import at_least_single


class Codebook(nn.Module):
    """K embeddings of L numbers.

    `fit` draws the embeddings from latents once. An embedding that is not nearest to any pixel gets no gradient and
    stays fixed.

    Args:
        num_embeddings: K.
        latent_dim: L.
        commitment: beta of equation 3, the weight of the term that pulls latents to embeddings. (By default, the code
            of latent-diffusion multiplies the other term by it.)
    """

    def __init__(self, num_embeddings: int, latent_dim: int, commitment: float = 0.25) -> None:
        super().__init__()
        bound = 1.0 / num_embeddings
        self.embeddings = nn.Parameter(torch.empty(num_embeddings, latent_dim).uniform_(-bound, bound))
        self.commitment = commitment

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the embeddings also under the name `codes`, which they have in checkpoints of format version 1."""
        if f"{prefix}codes" in state_dict:
            state_dict[f"{prefix}embeddings"] = state_dict.pop(f"{prefix}codes")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Draw the embeddings from the pixels of latents (B, L, h, w), with torch's global generator.

        If there are fewer pixels than embeddings, all are taken and the other embeddings stay as they are.
        """
        pixels = latents.movedim(1, -1).flatten(0, -2)
        chosen = torch.randperm(len(pixels))[: len(self.embeddings)]
        self.embeddings[: len(chosen)] = pixels[chosen.to(pixels.device)]

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Return the index of the nearest embedding, (B, h, w), for each pixel of latents (B, L, h, w)."""
        pixels = latents.movedim(1, -1).flatten(0, -2)
        distances = torch.addmm(
            self.embeddings.square().sum(1), pixels, self.embeddings.t(), alpha=-2.0
        )  # without |pixel|^2, which does not change the order
        return distances.argmin(1).view(latents.shape[0], *latents.shape[2:])

    def quantise(self, latents: Tensor) -> Tensor:
        """Round latents (B, L, h, w) to their nearest embeddings (B, L, h, w)."""
        return F.embedding(self.nearest(latents), self.embeddings).movedim(-1, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Round latents (B, L, h, w) to their nearest embeddings, with the straight-through gradient.

        Returns:
            the embeddings (B, L, h, w), and the loss of equation 3, a scalar.
        """
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 cannot tell neighbouring embeddings apart
            latents = at_least_single(latents)
            nearest = self.quantise(latents)
            loss = F.mse_loss(nearest, latents.detach()) + self.commitment * F.mse_loss(latents, nearest.detach())
            return latents + (nearest - latents).detach(), loss
