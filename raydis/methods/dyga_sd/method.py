"""DyGA+SD (arXiv 2410.23820): a diffusion model conditioned on disentangled units of an encoder.

B batch, N units, D unit width, C H W image, L channels of the latent, h w its size.

The encoder maps an image to N units and each unit to a vector, its token. Dynamic Gaussian Anchoring (DyGA) moves each
token towards an anchor. A U-Net, trained with Skip Dropout (SD), denoises the image and reads the tokens by
cross-attention. With anchors off and a skip_dropout_rate of 0, the method is EncDiff (arXiv 2402.09712) with this
encoder, so the controls of the paper are settings of this class.

So is a reconstruction of the method of arXiv 2602.05214, of which we could read neither code nor formulas, only a
summary: flow matching on the straight path, conditioned on the tokens by cross-attention, and a penalty on what the
contributions of two factors have in common. We chose: the schedule `straight` with the prediction `flow` and loss `l2`;
and as penalty the cosine of where two units' tokens write, averaged over pairs, transformers and images
(`raydis.models.blocks.overlap`), times `overlap_weight`. According to summaries, the authors divide the velocity among
the factors by an attention at the output of their network, and penalise there. We keep the U-Net as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raydis.config.dyga_sd import AnchorConfig
from raydis.diffusion.denoising import Denoising, add_noise
from raydis.diffusion.samplers import PredictSample, Sampler, ddim_invert, sample
from raydis.methods.contract import (
    Batch,
    Diagnosis,
    Draws,
    FactorTable,
    Losses,
    Move,
    TokenCloud,
    UnitMethod,
)
from raydis.methods.dyga_sd.anchoring import diagnose_anchors
from raydis.methods.dyga_sd.diagnosis import lay_out, read_version_1
from raydis.metrics.telling import UnitLabel
from raydis.models.anchors import Anchors
from raydis.models.autoencoders import Autoencoder, FirstStage
from raydis.models.encoder import UnitEncoder
from raydis.models.unet import UNet


class DygaSd(UnitMethod):
    """An encoder, anchors, a first stage and a U-Net, trained by denoising.

    Args:
        encoder, unet, anchors, first_stage: the networks. Their sizes must agree.
        denoising: noise schedule, training times and loss.
        latent_size: h = w, px.
        refit: when and how the anchors are fitted; None if they never are.
        overlap_weight: weight of the overlap of the units' tokens in the loss; 0 omits it.
        num_quantiles: Q of `unit_quantiles`.
    """

    def __init__(
        self,
        *,
        encoder: UnitEncoder,
        unet: UNet,
        anchors: Anchors,
        first_stage: FirstStage,
        denoising: Denoising,
        latent_size: int,
        refit: AnchorConfig | None = None,
        overlap_weight: float = 0.0,
        num_quantiles: int = 21,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.unet = unet
        self.anchors = anchors
        self.first_stage = first_stage.requires_grad_(False)
        self.denoising = denoising
        self.latent_shape = (first_stage.latent_dim, latent_size, latent_size)
        self.overlap_weight = overlap_weight
        self._refit = refit
        if refit is not None and refit.mode != "off":
            self.refit_images, self.refit_samples = refit.refit_images, refit.fit_samples
        self.num_units, _, self.unit_dim = anchors.means.shape
        self.couples_codes = anchors.mode == "release"
        self.register_quantiles(self.num_units, num_quantiles)

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The first stage if it is a learned one, else None."""
        return self.first_stage if isinstance(self.first_stage, Autoencoder) else None

    @property
    def moves(self) -> Sequence[Move]:
        """One move: denoising trains encoder and U-Net together, and the moving average follows both.

        The released code averages the U-Net alone, and conditions it on the tokens of the encoder that is not averaged.
        Here both are averaged, so that they come from the same stage of training.
        """
        return [Move("denoise", [self.encoder, self.unet])]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise (B, L, h, w) and the timesteps (B,) of one step."""
        noise = torch.randn(batch_size, *self.latent_shape, generator=generator, device=generator.device)
        return {"timesteps": self.denoising.draw_timesteps(batch_size, generator), "noise": noise}

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit the first stage, if it has a closed form."""
        if not isinstance(self.first_stage, Autoencoder):
            self.first_stage.fit(torch.cat(list(parts)))

    @torch.no_grad()
    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        """Fit the anchors to the raw tokens of images, in eval mode; see `Anchors.fit`."""
        assert self._refit is not None
        self.eval()
        mixtures = self.anchors.fit(
            torch.cat([self.encoder(images) for images in parts]),
            **self._refit.model_dump(include={"num_gaussians", "num_splits", "split_spread", "min_count", "em_steps"}),
            generator=generator,
        )
        return {unit: reason for unit, reason in enumerate(mixtures.reasons) if reason}

    @property
    def refitted(self) -> nn.Module:
        """The anchors, including their ramp."""
        return self.anchors

    def begin_step(self, share: float) -> None:
        """Set the ramp of the anchors to the share of the budget that has been used."""
        self.anchors.ramp.fill_(share)

    def end_step(self) -> None:
        """Move the anchors towards the tokens of this step."""
        self.anchors.track()

    def health(self) -> dict[str, int]:
        """Return the number of units without a mixture after the last fit; 0 before the first fit."""
        return {"num_unanchored_units": int((self.anchors.fitted & ~self.anchors.active).sum())}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the denoising loss of a batch; with a penalty, their weighted sum and both parts."""
        images, latents = batch.images, batch.latents
        timesteps, noise = batch.draws["timesteps"], batch.draws["noise"]
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would add more noise than the earliest times
            scaled = self.first_stage.encode(images) if latents is None else latents * self.first_stage.scale
        alpha_bar = self.denoising.alpha_bars[timesteps]
        noisy = add_noise(scaled, noise, alpha_bar)
        codes = self.anchors(self.encoder(images))
        overlaps: list[Tensor] | None = [] if self.overlap_weight else None
        predicted = self.unet(noisy, timesteps, self.unet.condition(codes), overlaps)
        denoising = self.denoising.loss(predicted, self.denoising.target(scaled, noise, alpha_bar))
        if overlaps is None:
            return {"loss": denoising}
        overlap = torch.stack(overlaps).mean()
        return {"loss": denoising + self.overlap_weight * overlap, "denoising": denoising, "overlap": overlap}

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the scalars (B, N) of the units for images (B, C, H, W) in [-1, 1]."""
        return self.encoder.units(images)

    @torch.no_grad()
    def lift(self, units: Tensor) -> Tensor:
        """Map scalars (B, N) to codes (B, N, D): the token of each unit, moved towards its anchor."""
        return self.anchors(self.encoder.tokens(units))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape (L, h, w) of the latent that sampling starts from."""
        return self.latent_shape

    @property
    def max_steps(self) -> int:
        """The number of timesteps of the noise schedule."""
        return len(self.denoising.alpha_bars)

    @property
    def default_steps(self) -> int:
        """The number that the configuration sets."""
        return self.denoising.default_steps

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Sample images (B, C, H, W) in [-1, 1] from noise (B, L, h, w), conditioned on codes (B, N, D)."""
        assert noise is not None
        assert steps is not None
        assert sampler is not None
        latents = sample(sampler, self._denoiser(codes), noise, self.denoising.alpha_bars, steps)
        return self.first_stage.decode(latents).clamp(-1.0, 1.0)

    @torch.no_grad()
    def invert(self, codes: Tensor, images: Tensor, steps: int) -> Tensor:
        """Return the noise (B, L, h, w) from which `ddim` draws images (B, C, H, W), given their codes (B, N, D)."""
        latents = self.first_stage.encode(images)
        return ddim_invert(self._denoiser(codes), latents, self.denoising.alpha_bars, steps)

    def _denoiser(self, codes: Tensor) -> PredictSample:
        """Return the function that predicts z_0 conditioned on codes (B, N, D)."""
        condition, denoising = self.unet.condition(codes), self.denoising

        def predict(z: Tensor, t: Tensor) -> Tensor:
            return denoising.sample(self.unet(z, t, condition), z, denoising.alpha_bars[t])

        return predict

    def facts(self, units: Tensor) -> dict[str, Tensor]:
        """Return for each unit the component that its token belongs to (-1 for none), and its probability."""
        assignment = self.anchors.assign(self.encoder.tokens(units))
        return {"component": assignment.component, "responsibility": assignment.responsibility}

    def unit_counts(self) -> dict[str, list[int]]:
        """Return the number of components of each unit's mixture; 0 without a mixture."""
        return {"num_components": self.anchors.alive.sum(-1).tolist()}

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Return the measurements of `Anchoring` as a table; None before the first fit."""
        if not self.anchors.fitted:
            return None
        tokens = (self.encoder.tokens(self.units(images)) for images in parts)
        return lay_out(diagnose_anchors(self.anchors, tokens, table, labels).to_dict(), labels)

    def read_diagnosis(self, stored: Mapping[str, Any], labels: Sequence[UnitLabel]) -> Diagnosis:
        """Return the table that a checkpoint of any format version stores."""
        # Not by the version: a checkpoint of version 1 that is published again has today's version, and this old part.
        return super().read_diagnosis(stored, labels) if "rows" in stored else read_version_1(stored, labels)

    @torch.no_grad()
    def token_cloud(self, images: Tensor) -> TokenCloud | None:
        """Return the tokens of images and the means that they are moved to; None before the first fit."""
        if not self.anchors.fitted:
            return None
        raw = self.encoder.tokens(self.units(images))
        means, alive = self.anchors.anchor_tokens(), self.anchors.alive
        return TokenCloud(
            raw=raw,
            pulled=self.anchors(raw),
            components=self.anchors.assign(raw).component,
            anchors=[means[unit, alive[unit]] for unit in range(self.num_units)],
        )
