"""DisDiff (arXiv 2301.13721): units that are vectors, each of which shifts what a frozen diffusion model predicts.

B batch, N units, D unit width, C H W image, L h w latent, ab (alpha_bar) the share of the signal's variance at a time.

An encoder maps an image to N vectors. A second decoder maps each of them, given the features of the frozen U-Net, to a
*field*, an estimate of the gradient of log p(vector | z_t). The sum of all fields shifts the predicted noise, so that
the image is reconstructed. Two further losses ask the field of a unit to change this unit alone.

The losses are those of the released code, with three differences. The encoder that judges decoded images is the same
module with constant weights, not a copy made in each step. It also computes the vectors that the judged ones are
compared with, so that a batch norm treats all three by its running statistics; the released code takes these vectors
from training mode. And the noise, the times and the units are drawn from the generator of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raydis.diffusion.denoising import add_noise
from raydis.diffusion.samplers import PredictSample, Sampler, ddim_invert, sample
from raydis.diffusion.schedule import alpha_bars, shift_coefficients
from raydis.methods.contract import Batch, Draws, Losses, Method, Move
from raydis.methods.unconditional_diffusion import UnconditionalDiffusion
from raydis.methods.vector_units import VectorUnitMethod
from raydis.models.autoencoders import Autoencoder
from raydis.models.precision import at_least_single
from raydis.models.residual_encoder import VectorEncoder
from raydis.models.shift_unet import ShiftDecoder


class Disdiff(VectorUnitMethod):
    """An encoder and a decoder of fields, trained around a frozen diffusion model.

    Args:
        encoder, decoder: the networks that are trained.
        diffusion: the frozen model, which predicts noise. The engine loads its weights.
        unit_dim: D.
        weight: lambda, of the invariant and the variant loss.
        weighting: whether the squared effect of a field, by which both losses are weighted, is measured on `latent`s or
            on the `image`s that they decode to.
    """

    def __init__(
        self,
        *,
        encoder: VectorEncoder,
        decoder: ShiftDecoder,
        diffusion: UnconditionalDiffusion,
        unit_dim: int,
        weight: float,
        weighting: str,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.diffusion = diffusion.requires_grad_(False).eval()
        self.weight = weight
        self.weighting = weighting
        self.register_units((unit_dim,) * decoder.num_units)
        shifts = shift_coefficients(alpha_bars(diffusion.denoising.schedule, diffusion.denoising.num_timesteps))
        self.register_buffer("shifts", torch.tensor(shifts, dtype=torch.get_default_dtype()), persistent=False)
        self.shifts: Tensor

    def train(self, mode: bool = True) -> Disdiff:
        """Set the mode of the networks that are trained. The frozen model stays in eval mode."""
        super().train(mode)
        self.diffusion.eval()
        return self

    @property
    def pretrained(self) -> Method:
        """The frozen diffusion model."""
        return self.diffusion

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The first stage of the diffusion model if it is a learned one, else None."""
        return self.diffusion.autoencoder

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains the encoder and the decoder of the fields."""
        return [Move("shift", [self.encoder, self.decoder])]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the noise (B, L, h, w), the timesteps and the units (B,) whose fields are judged in one step."""
        units = torch.randint(self.num_units, (batch_size,), generator=generator, device=generator.device)
        return {**self.diffusion.draw(batch_size, generator), "units": units}

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit the first stage, if it has a closed form. The engine replaces it by that of the pre-trained model."""
        self.diffusion.start(parts, generator)

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the loss, and its terms as means over the images, without their weights."""
        timesteps, noise, chosen = (batch.draws[name] for name in ("timesteps", "noise", "units"))
        alpha_bar = self.diffusion.denoising.alpha_bars[timesteps]
        noisy = add_noise(self.diffusion.latents(batch), noise, alpha_bar)
        with torch.no_grad():
            features = self.diffusion.unet.contract(noisy, timesteps)
            predicted = at_least_single(self.diffusion.unet.expand(features))
        fields = at_least_single(self.decoder(features, self.decoder.condition(self.encoder(batch.images))))
        shifts = self.shifts[timesteps].view(-1, 1, 1, 1)
        reconstruction = self.diffusion.denoising.loss(predicted + shifts * fields.sum(0), noise)

        field = fields[chosen, torch.arange(len(chosen), device=chosen.device)]
        without = self.predict(predicted, noisy, alpha_bar)
        shifted = self.predict(self.shift(predicted, field, alpha_bar), noisy, alpha_bar)
        invariant, variant, effect = self.judge(batch.images, without, shifted, chosen)
        terms = {"invariant": invariant.mean(), "variant": variant.mean(), "effect": effect.mean()}
        loss = reconstruction + self.weight * (effect * (invariant + variant)).mean()
        return {"loss": loss, "reconstruction": reconstruction, **terms}

    def shift(self, predicted: Tensor, field: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the predicted noise (B, L, h, w), shifted by a field as sampling shifts it, at alpha_bar (B,)."""
        return predicted - (1.0 - alpha_bar).sqrt().view(-1, 1, 1, 1) * field

    def predict(self, predicted: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the z_0 (B, L, h, w) that the predicted noise in z_t implies, at alpha_bar (B,)."""
        return self.diffusion.denoising.sample(predicted, noisy, alpha_bar)

    def judge(self, images: Tensor, without: Tensor, shifted: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the invariant loss, the variant loss and their weight for each image, (B,) each.

        Args:
            images: (B, C, H, W).
            without: z_0 (B, L, h, w) as the frozen model predicts it, a constant.
            shifted: the same, shifted by the field of one unit.
            chosen: that unit, (B,).
        """
        with torch.no_grad():
            plain_image = self.picture(without)
            target, plain = self.encode(torch.cat([images, plain_image.to(images.dtype)])).chunk(2)
        shifted_image = self.picture(shifted)
        weights = {name: weight.detach() for name, weight in self.encoder.named_parameters()}
        with evaluating(self.encoder):
            moved = at_least_single(functional_call(self.encoder, weights, (shifted_image.to(images.dtype),)))
        invariant, variant = contrast(target, plain, moved, chosen)
        pair = (plain_image, shifted_image) if self.weighting == "image" else (without, shifted)
        effect = (pair[0] - pair[1]).detach().square().mean((1, 2, 3))
        return invariant, variant, effect

    def picture(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, L, h, w), without a codebook's rounding, which has no slope."""
        stage = self.diffusion.first_stage
        return stage.decode_unrounded(latents) if isinstance(stage, Autoencoder) else stage.decode(latents)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, N, D) of images (B, C, H, W) in [-1, 1], in eval mode in any case."""
        with evaluating(self.encoder):
            return at_least_single(self.encoder(images))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape (L, h, w) of the latent that sampling starts from."""
        return self.diffusion.latent_shape

    @property
    def max_steps(self) -> int:
        """The number of timesteps of the noise schedule."""
        return len(self.diffusion.denoising.alpha_bars)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Sample images (B, C, H, W) in [-1, 1] from noise (B, L, h, w), shifted by the fields of codes (B, N, D)."""
        assert noise is not None
        assert steps is not None
        assert sampler is not None
        latents = sample(sampler, self._denoiser(codes), noise, self.diffusion.denoising.alpha_bars, steps)
        return self.diffusion.first_stage.decode(latents).clamp(-1.0, 1.0)

    @torch.no_grad()
    def invert(self, codes: Tensor, images: Tensor, steps: int) -> Tensor:
        """Return the noise (B, L, h, w) from which `ddim` draws images (B, C, H, W), given their codes (B, N, D)."""
        latents = self.diffusion.first_stage.encode(images)
        return ddim_invert(self._denoiser(codes), latents, self.diffusion.denoising.alpha_bars, steps)

    def _denoiser(self, codes: Tensor) -> PredictSample:
        """Return the function that predicts z_0 with the fields of codes (B, N, D)."""
        condition, denoising, unet = self.decoder.condition(codes), self.diffusion.denoising, self.diffusion.unet

        def predict(z: Tensor, t: Tensor) -> Tensor:
            features, alpha_bar = unet.contract(z, t), denoising.alpha_bars[t]
            field = self.decoder(features, condition).sum(0)
            return self.predict(self.shift(unet.expand(features), field, alpha_bar), z, alpha_bar)

        return predict


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode within a `with` block."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def contrast(target: Tensor, plain: Tensor, moved: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the invariant and the variant loss for each image, (B,) each.

    Both are cross-entropies over the units. The logits of the invariant loss are the distances |plain - moved|: the
    field of a unit may move no other. Those of the variant loss are |plain - target| - |moved - target|: it must move
    this one towards the image. The second needs no gradient in `plain` and `target`, which are constants.

    Args:
        target, plain, moved: codes (B, N, D) of the images, of what the frozen model predicts, and of what it predicts
            with the field of one unit.
        chosen: that unit, (B,).
    """
    distances = (plain - moved).norm(dim=-1)
    gains = (plain - target).norm(dim=-1) - (moved - target).norm(dim=-1)
    return F.cross_entropy(distances, chosen, reduction="none"), F.cross_entropy(gains, chosen, reduction="none")
