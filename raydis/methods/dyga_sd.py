"""DyGA+SD (arXiv 2410.23820): units -> tokens -> anchors -> cross-attention of a denoising U-Net.

B batch, N units, D unit width, C H W image, L channels of the latent, h w its size.
With anchors off and skip_dropout_rate 0 this is EncDiff (arXiv 2402.09712) with this encoder: every control of the
paper is a setting, not another class.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from raydis.config import AnchorConfig
from raydis.diffusion.objective import Objective, add_noise
from raydis.diffusion.samplers import PredictSample, Sampler, ddim_invert, sample
from raydis.methods.contract import Draws, Method
from raydis.models.anchors import Anchors
from raydis.models.autoencoders import Autoencoder, FirstStage
from raydis.models.encoder import Encoder
from raydis.models.unet import UNet


class DygaSd(Method):
    """Encoder, anchors, first stage and U-Net under one roof; everything that changes `encode` is in the state dict.

    Args:
        encoder, unet, anchors, first_stage: the networks; their sizes must agree.
        objective: schedule, times and loss.
        latent_size: h = w, px.
        refit: when and how the anchors are fitted; None: never.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        unet: UNet,
        anchors: Anchors,
        first_stage: FirstStage,
        objective: Objective,
        latent_size: int,
        refit: AnchorConfig | None = None,
        num_quantiles: int = 21,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.unet = unet
        self.anchors = anchors
        self.first_stage = first_stage.requires_grad_(False)
        self.objective = objective
        self.latent_shape = (first_stage.latent_dim, latent_size, latent_size)
        self._refit = refit
        if refit is not None and refit.mode != "off":
            self.refit_images, self.refit_samples = refit.refit_images, refit.fit_samples
        num_units = encoder.tokens.weights[0].shape[0]
        # Where a unit's scalars lie over the data: what a traversal walks along and a service may be asked for.
        self.register_buffer("unit_quantiles", torch.zeros(num_units, num_quantiles))
        self.unit_quantiles: Tensor

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The first stage, where it is a learned one."""
        return self.first_stage if isinstance(self.first_stage, Autoencoder) else None

    @property
    def trained_modules(self) -> tuple[nn.Module, nn.Module]:
        """What the optimiser changes and the average of the weights follows.

        The release averages the U-Net alone and conditions it on the tokens of the raw encoder; here both are averaged,
        so that the two that work together are of one age.
        """
        return self.encoder, self.unet

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Times and noise of one step, on the generator's device."""
        noise = torch.randn(batch_size, *self.latent_shape, generator=generator, device=generator.device)
        return Draws(self.objective.draw_timesteps(batch_size, generator), noise)

    def start(self, images: Tensor) -> None:
        """Fit a first stage of closed form to images (B, C, H, W) in [-1, 1]."""
        if not isinstance(self.first_stage, Autoencoder):
            self.first_stage.fit(images)

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

    def refitted(self) -> list[Tensor]:
        """The anchors' buffers."""
        return list(self.anchors.buffers())

    def copy_refitted(self, other: Method) -> None:
        """Take over another instance's anchors and their ramp."""
        assert isinstance(other, DygaSd)
        self.anchors.load_state_dict(other.anchors.state_dict())

    def pass_share(self, share: float) -> None:
        """Raise the anchors' ramp to the share of the budget that is spent."""
        self.anchors.ramp.fill_(share)

    def end_step(self) -> None:
        """Let the anchors follow the tokens."""
        self.anchors.track()

    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure the quantiles of the units' scalars."""
        self.set_unit_quantiles(torch.cat([self.units(images) for images in parts]))

    @property
    def num_unanchored_units(self) -> int:
        """Units whose tokens the last fit found no mixture for; 0 before the first."""
        return int((self.anchors.fitted & ~self.anchors.active).sum())

    def forward(self, images: Tensor, draws: Draws, latents: Tensor | None = None) -> Tensor:
        """Loss of a batch, a scalar; images (B, C, H, W) in [-1, 1], their raw latents (B, L, h, w) where known."""
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would add more noise than the first times do
            scaled = self.first_stage.encode(images) if latents is None else latents * self.first_stage.scale
        alpha_bar = self.objective.alpha_bars[draws.timesteps]
        noisy = add_noise(scaled, draws.noise, alpha_bar)
        codes = self.anchors(self.encoder(images))
        predicted = self.unet(noisy, draws.timesteps, self.unet.condition(codes))
        return self.objective.loss(predicted, self.objective.target(scaled, draws.noise, alpha_bar))

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> the units' scalars (B, N)."""
        return self.encoder.units(images)

    @torch.no_grad()
    def lift(self, units: Tensor) -> Tensor:
        """Scalars (B, N) -> codes (B, N, D): each unit's token, pulled towards its anchor."""
        return self.anchors(self.encoder.tokens(units))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, N, D): what conditions the decoder."""
        return self.lift(self.units(images))

    @torch.no_grad()
    def decode(self, codes: Tensor, noise: Tensor, num_steps: int, sampler: Sampler) -> Tensor:
        """Codes (B, N, D) and starting noise (B, L, h, w) -> images (B, C, H, W) in [-1, 1]."""
        latents = sample(sampler, self._denoiser(codes), noise, self.objective.alpha_bars, num_steps)
        return self.first_stage.decode(latents).clamp(-1.0, 1.0)

    @torch.no_grad()
    def invert(self, codes: Tensor, images: Tensor, num_steps: int) -> Tensor:
        """The starting noise (B, L, h, w) from which `ddim` draws images (B, C, H, W) under their codes (B, N, D)."""
        latents = self.first_stage.encode(images)
        return ddim_invert(self._denoiser(codes), latents, self.objective.alpha_bars, num_steps)

    def _denoiser(self, codes: Tensor) -> PredictSample:
        """The network's prediction of z_0 under codes (B, N, D)."""
        condition, objective = self.unet.condition(codes), self.objective

        def predict(z: Tensor, t: Tensor) -> Tensor:
            return objective.sample(self.unet(z, t, condition), z, objective.alpha_bars[t])

        return predict

    @torch.no_grad()
    def set_unit_quantiles(self, units: Tensor) -> None:
        """Remember evenly spaced quantiles of each unit over the data, from scalars (M, N)."""
        quantiles = self.unit_quantiles
        levels = torch.linspace(0.0, 1.0, quantiles.shape[1], dtype=quantiles.dtype, device=units.device)
        quantiles.copy_(torch.quantile(units.to(quantiles.dtype), levels, dim=0).t())
