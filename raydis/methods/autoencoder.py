"""Training of a learned first stage: an autoencoder, and where wanted a discriminator that learns against it.

B batch, C H W image, L h w latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from raydis.methods.contract import Batch, Draws, Losses, Method, Move
from raydis.models.autoencoders import Autoencoder
from raydis.models.critics import PatchDiscriminator, PerceptualDistance
from raydis.models.precision import at_least_single


class AutoencoderMethod(Method):
    """Mean absolute error + the loss of the latents + the critics' terms.

    Both players learn in one step. The autoencoder's term, -mean D(reconstruction), sees the discriminator's weights as
    constants, and the discriminator's hinge loss sees the reconstruction as one; so their sum has the gradient of each
    player's own loss in that player's weights, and one backward pass and one optimiser move both at once (taming
    transformers, arXiv 2012.09841, alternates). The weight is fixed where theirs follows the last layer's gradients. A
    clipped gradient norm is that of both.

    Args:
        autoencoder: what is trained.
        latent_size: h = w, px.
        latent_weight: of the loss of the latents.
        discriminator: None for none.
        discriminator_weight: of its verdict in the autoencoder's loss.
        discriminator_start: share of the budget, in [0, 1), before which neither player sees the other.
        perceptual: None for none.
        perceptual_weight: its weight.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        latent_size: int,
        latent_weight: float,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.0,
        discriminator_start: float = 0.0,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = autoencoder
        self.latent_shape = (autoencoder.latent_dim, latent_size, latent_size)
        self.latent_weight = latent_weight
        self.discriminator = discriminator
        self.discriminator_weight = discriminator_weight
        self.discriminator_start = discriminator_start
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        # 0 or 1. A tensor, because a branch would leave weights without gradients, which several workers may not.
        self.register_buffer("adversarial", torch.ones(()), persistent=False)
        self.adversarial: Tensor

    @property
    def moves(self) -> Sequence[Move]:
        """One move of both players; see the class."""
        modules = [self.network] if self.discriminator is None else [self.network, self.discriminator]
        return [Move("reconstruct", modules)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise of the latents of one step, (B, L, h, w)."""
        noise = torch.randn(batch_size, *self.latent_shape, generator=generator, device=generator.device)
        return {"noise": noise}

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Prepare the autoencoder on a sample of the images."""
        self.network.start(torch.cat(list(parts)))

    def begin_step(self, share: float) -> None:
        """Let the discriminator count once its share of the budget is used."""
        self.adversarial.fill_(float(share >= self.discriminator_start))

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the loss of a batch."""
        images = batch.images
        reconstructions, latent_loss = self.network(images, batch.draws["noise"])
        loss = (reconstructions.to(images.dtype) - images).abs().mean() + self.latent_weight * latent_loss
        if self.perceptual is not None:
            loss = loss + self.perceptual_weight * self.perceptual(reconstructions, images)
        if self.discriminator is not None:
            verdict, error = self.judge(self.discriminator, images, reconstructions)
            loss = loss + self.adversarial * (self.discriminator_weight * verdict + error)
        return {"loss": loss}

    @staticmethod
    def judge(discriminator: PatchDiscriminator, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and their reconstructions (B, C, H, W) -> the autoencoder's and the discriminator's own loss."""
        constant = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        verdict = -at_least_single(functional_call(discriminator, constant, (reconstructions,))).mean()
        real, drawn = (at_least_single(discriminator(shown)) for shown in (images, reconstructions.detach()))
        return verdict, 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + drawn).mean())

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> encoded and decoded again, in [-1, 1]."""
        return self.network.decode_raw(self.network.raw(images)).clamp(-1.0, 1.0)
