"""The training of a learned first stage: an autoencoder, optionally with a discriminator and a perceptual loss.

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
    """Minimise the mean absolute error + the loss of the latents + the perceptual and adversarial losses.

    The autoencoder and the discriminator D are trained in the same step. The autoencoder's adversarial loss, -mean
    D(reconstruction), treats the weights of D as constants, and the hinge loss of D treats the reconstruction as a
    constant. The gradient of the sum is therefore, in the weights of each network, that of its own loss, and one
    backward pass and one optimiser serve both. Taming transformers (arXiv 2012.09841) alternates instead. The weight of
    the adversarial loss is fixed here; theirs follows the gradients of the last layer. If gradients are clipped, it is
    by their common norm.

    Args:
        autoencoder: the first stage to be trained.
        latent_size: h = w, px.
        latent_weight: weight of the loss of the latents.
        discriminator: None to train without one.
        discriminator_weight: weight of the adversarial loss of the autoencoder.
        discriminator_start: share of the budget, in [0, 1), from which on the adversarial losses count.
        perceptual: None to train without a perceptual loss.
        perceptual_weight: weight of that loss.
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
        # 0 or 1. We multiply by it because a branch would leave weights without gradients, and all workers need them.
        self.register_buffer("adversarial", torch.ones(()), persistent=False)
        self.adversarial: Tensor

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains both networks; see the class."""
        modules = [self.network] if self.discriminator is None else [self.network, self.discriminator]
        return [Move("reconstruct", modules)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise of the latents of one step, (B, L, h, w)."""
        noise = torch.randn(batch_size, *self.latent_shape, generator=generator, device=generator.device)
        return {"noise": noise}

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Initialise the autoencoder from a sample of the images."""
        self.network.start(torch.cat(list(parts)))

    def begin_step(self, share: float) -> None:
        """Switch the adversarial losses on when training has reached `discriminator_start`."""
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
        """Return the adversarial losses of the autoencoder and of the discriminator, given (B, C, H, W) images."""
        constant = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        verdict = -at_least_single(functional_call(discriminator, constant, (reconstructions,))).mean()
        real, drawn = (at_least_single(discriminator(shown)) for shown in (images, reconstructions.detach()))
        return verdict, 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + drawn).mean())

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] encoded and decoded again, in [-1, 1]."""
        return self.network.decode_raw(self.network.raw(images)).clamp(-1.0, 1.0)
