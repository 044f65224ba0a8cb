"""DOT-VAE (Patil et al., arXiv 2210.10920): a VAE that opens one unit after the other. A reconstruction.

B batch, N units, R residual values, C H W image.

We had the abstract of the paper and the text of its anonymous predecessor, "Disentangling One Factor at a Time" (OAT);
there is no public code. Where the text is silent or contradicts itself, the choice is ours, and the arguments of
`DotVae` say so. It has nothing to do with the `DotVae` of the library disent, which is trained on triplets.

The latent of this variational autoencoder (VAE) has two parts: N units, and a residual of R values that is not meant to
be disentangled. Training begins with the residual alone. Then the units open one at a time, while the weight of the
residual's divergence grows, so that information moves into the units. From then on, one open unit of each image is
changed. The changed image must look real to a discriminator, and must be encoded again to the latent it was drawn from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Draws, Losses, Move, UnitMethod
from raydis.methods.diagnosis import Diagnosis, FactorTable
from raydis.methods.intervene import Source, choose_units, draw_intervention, intervene
from raydis.methods.unlocking import Unlocking, describe_residual
from raydis.methods.vae import Posterior, bernoulli_loss, bernoulli_means, gaussian_kls
from raydis.metrics.telling import UnitLabel
from raydis.models.conv_vae import ConvDecoder, SplitEncoder
from raydis.models.critics import ImageDiscriminator
from raydis.models.precision import at_least_single

SMALLEST_VARIANCE = 0.05  # of a posterior that a latent is encoded to again
MEASURED_IMAGES = 1024  # from which the divergence of the units is measured before another one opens


class DotVae(UnitMethod):
    """Minimise the loss of a VAE with two latents + the losses of interventions on the units.

    The residual is the noise that drawing takes: from the prior N(0, 1) for a seed, or from an image for its details.
    Locked units are exactly 0. Both steps of the text, on data and on interventions, are made together, and their
    losses added, so that each player has one optimiser. The discriminator is trained from the start; during the
    pre-training, on reconstructions.

    Args:
        encoder: a network with two parts, N and R wide.
        decoder: a network from N + R numbers to the logits of pixels.
        discriminator: tells real images from drawn ones.
        num_units: N, the largest number of units. Not all need to open.
        residual_dim: R.
        pretraining_share: share of the training budget, in [0, 1), without units (ours: a fixed share).
        unlock_images: training images between two measurements, after each of which a unit may open (ours).
        min_kl: nats that the last opened unit must carry before the next one opens (ours).
        max_refusals: after so many measurements in a row below `min_kl`, no more units open (ours).
        max_beta: weight of the residual's KL divergence at the end. It grows linearly from 1 once units open.
        reencoding_weight, adversarial_weight: of the two losses of an intervention (ours).
        reencoding_loss: "likelihood" divides the squared error by the variance of the posterior, which is a constant
            and at least 0.05 (ours); "mse" does not.
        intervention: where a unit's new value comes from; see `intervene`.
        discriminator_rate_scale: learning rate of the discriminator, divided by that of the VAE.
    """

    unit_dim = 1
    refit_samples = MEASURED_IMAGES

    def __init__(
        self,
        *,
        encoder: SplitEncoder,
        decoder: ConvDecoder,
        discriminator: ImageDiscriminator,
        num_units: int,
        residual_dim: int,
        unlock_images: int,
        pretraining_share: float = 0.1,
        min_kl: float = 0.1,
        max_refusals: int = 2,
        max_beta: float = 8.0,
        reencoding_weight: float = 1.0,
        adversarial_weight: float = 0.1,
        reencoding_loss: Literal["likelihood", "mse"] = "likelihood",
        intervention: Source = "prior",
        discriminator_rate_scale: float = 2.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.discriminator = discriminator
        self.num_units = num_units
        self.residual_dim = residual_dim
        self.refit_images = unlock_images
        self.pretraining_share = pretraining_share
        self.unlocking = Unlocking(num_units, min_kl=min_kl, max_refusals=max_refusals)
        self.max_beta = max_beta
        self.reencoding_weight = reencoding_weight
        self.adversarial_weight = adversarial_weight
        self.reencoding_loss = reencoding_loss
        self.intervention: Source = intervention
        self.discriminator_rate_scale = discriminator_rate_scale
        self.register_buffer("beta", torch.ones(()), persistent=False)  # of this step
        self.beta: Tensor
        self.register_quantiles(num_units)
        if pretraining_share == 0.0:
            self.unlocking.advance()  # so that the untrained method has a unit

    @property
    def moves(self) -> Sequence[Move]:
        """The move of the VAE, then that of the discriminator."""
        couples = self.intervention == "batch"
        return [
            Move("vae", [self.encoder, self.decoder], weight_decay=0.0, couples=couples),
            Move(
                "discriminator",
                [self.discriminator],
                learning_rate_scale=self.discriminator_rate_scale,
                betas=(0.5, 0.999),
                weight_decay=0.0,
                couples=couples,
            ),
        ]

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        """The networks of the VAE. The discriminator is not used after training."""
        return [self.encoder, self.decoder]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise of both posteriors, (B, N) and (B, R), and what the intervention needs."""
        shapes = {"noise": self.num_units, "residual_noise": self.residual_dim}
        noise = {
            name: torch.randn(batch_size, width, generator=generator, device=generator.device)
            for name, width in shapes.items()
        }
        return noise | draw_intervention(batch_size, self.num_units, self.intervention, generator)

    def begin_step(self, share: float) -> None:
        """Open a unit if one is due, set the weight of the residual, and follow the discriminator's spectral norms."""
        self.discriminator.iterate()
        if share >= self.pretraining_share:
            self.unlocking.advance()
        progress = max(share - self.pretraining_share, 0.0) / (1.0 - self.pretraining_share)
        self.beta.fill_(1.0 + (self.max_beta - 1.0) * progress)

    @torch.no_grad()
    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        """Measure the KL divergence of each unit, which decides whether the next step opens another one."""
        kls = [gaussian_kls(*self._moments(images)[0]) for images in parts]
        self.unlocking.record(torch.cat(kls).mean(0))
        return {}

    @property
    def refitted(self) -> nn.Module:
        """The state of the unlocking, which is not averaged over time."""
        return self.unlocking

    def not_ready(self) -> str | None:
        """Return that no unit is open yet, or None."""
        if self.unlocking.count():
            return None
        return (
            f"no unit is open yet: the first one opens after {100 * self.pretraining_share:g} % of train.num_images "
            "(method.pretraining_share)"
        )

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the losses of the VAE, or the cross-entropy of the discriminator."""
        return self._vae_losses(batch) if move == "vae" else self._discriminator_losses(batch)

    def _vae_losses(self, batch: Batch) -> Losses:
        units, residual = self._posteriors(batch.images, batch.draws)
        is_open = self.unlocking.is_open
        logits = self.decoder(torch.cat([units.sample, residual.sample], dim=1))
        terms = {
            "reconstruction": bernoulli_loss(logits, batch.images),
            "kl": torch.where(is_open, gaussian_kls(units.mean, units.log_variance), 0.0).sum(1).mean(),
            "residual_kl": gaussian_kls(residual.mean, residual.log_variance).sum(1).mean(),
        }
        loss = terms["reconstruction"] + terms["kl"] + self.beta * terms["residual_kl"]
        if not (self.reencoding_weight or self.adversarial_weight):
            return {"loss": loss, **terms}
        changed, kept = self._intervened(units.sample, batch.draws), residual.sample.detach()
        drawn = bernoulli_means(self.decoder(torch.cat([changed, kept], dim=1)))
        terms["reencoding"] = self._reencoding_loss(drawn, changed, kept)
        constant = dict(self.discriminator.named_buffers())
        constant |= {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        terms["adversarial"] = F.softplus(-at_least_single(functional_call(self.discriminator, constant, drawn))).mean()
        weighted = self.reencoding_weight * terms["reencoding"] + self.adversarial_weight * terms["adversarial"]
        return {"loss": loss + is_open.any() * weighted, **terms}

    def _reencoding_loss(self, drawn: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
        """Return the error with which drawn images (B, C, H, W) are encoded to the latent they were drawn from."""
        units, residual = self._moments(drawn)
        errors = torch.cat([torch.where(self.unlocking.is_open, units[0] - changed, 0.0), residual[0] - kept], dim=1)
        if self.reencoding_loss == "mse":
            return errors.square().sum(1).mean()
        variances = torch.cat([units[1], residual[1]], dim=1).detach().exp().clamp(min=SMALLEST_VARIANCE)
        return 0.5 * (errors.square() / variances).sum(1).mean()

    def _discriminator_losses(self, batch: Batch) -> Losses:
        with torch.no_grad():
            units, residual = self._posteriors(batch.images, batch.draws)
            changed = self._intervened(units.sample, batch.draws)
            drawn = bernoulli_means(self.decoder(torch.cat([changed, residual.sample], dim=1)))
        verdicts = at_least_single(self.discriminator(torch.cat([batch.images, drawn.to(batch.images.dtype)])))
        real, fake = verdicts.chunk(2)
        return {"loss": F.softplus(-real).mean() + F.softplus(fake).mean()}

    def _moments(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return mean and log variance of the posteriors of all units (B, N), locked ones too, and residual (B, R)."""
        units, residual = ((at_least_single(mean), at_least_single(spread)) for mean, spread in self.encoder(images))
        return units, residual

    def _posteriors(self, images: Tensor, draws: Draws) -> tuple[Posterior, Posterior]:
        """Return the posteriors of the units and of the residual. The samples of locked units are 0."""
        units, residual = self._moments(images)
        samples = torch.where(self.unlocking.is_open, units[0] + (0.5 * units[1]).exp() * draws["noise"], 0.0)
        return Posterior(*units, samples), Posterior(
            *residual, residual[0] + (0.5 * residual[1]).exp() * draws["residual_noise"]
        )

    def _intervened(self, units: Tensor, draws: Draws) -> Tensor:
        """Return the units (B, N), without gradients, with another value of one open unit in each row."""
        is_open, units = self.unlocking.is_open, units.detach()
        chosen = choose_units(is_open, draws["unit_keys"])
        return torch.where(is_open, intervene(units, chosen, draws, self.intervention), units)

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the posterior means (B, N) of images (B, C, H, W) in [-1, 1]; 0 for locked units."""
        return torch.where(self.unlocking.is_open, self._moments(images)[0][0], 0.0)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(R, 1, 1), the shape of the residual."""
        return (self.residual_dim, 1, 1)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] of codes (B, N, 1) and a residual (B, R, 1, 1)."""
        assert noise is not None
        units = torch.where(self.unlocking.is_open, codes.squeeze(-1), 0.0)
        return bernoulli_means(self.decoder(torch.cat([units, noise.flatten(1)], dim=1)))

    @torch.no_grad()
    def invert(self, codes: Tensor, images: Tensor, steps: int | None = None) -> Tensor:
        """Return the residual of images (B, C, H, W), (B, R, 1, 1): the mean of its posterior."""
        return self._moments(images)[1][0][:, :, None, None]

    def unit_counts(self) -> dict[str, list[int]]:
        """Return 1 for open units and 0 for locked ones."""
        return {"open": self.unlocking.is_open.int().tolist()}

    @torch.no_grad()
    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Measure what each unit carries, and what the residual carries and tells about the factors."""
        units, residuals, means = [], [], []
        for images in parts:
            moments, residual = self._moments(images)
            units.append(gaussian_kls(*moments))
            residuals.append(gaussian_kls(*residual).sum(1))
            means.append(residual[0])
        opened = self.unlocking.is_open.tolist()
        return describe_residual(
            opened,
            torch.cat(units).mean(0).tolist(),
            torch.cat(residuals).mean().item(),
            torch.cat(means).cpu().numpy(),
            table,
        )
