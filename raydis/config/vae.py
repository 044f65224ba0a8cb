"""Configuration of the variational autoencoders (VAEs).

The defaults are those of disentanglement_lib (Locatello et al., arXiv 1811.12359). Where its study tries several
values, the class names them, and the default is one of them or that of the method's own paper.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raydis.config.method import MethodSection, check_reduction
from raydis.config.section import Rate, Size

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class ConvSection(MethodSection):
    """The settings of all methods with the convolutional encoder and decoder of disentanglement_lib."""

    num_units: int = Field(default=10, ge=2, le=256, description="Latent units N.")
    hidden_dim: int = Field(default=256, ge=1, description="Width of the dense layers of encoder and decoder.")

    def check(self, run: RunConfig) -> None:
        check_reduction(run)

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.num_units": {"kind": "int", "low": 6, "high": 20}}


class VaeSection(ConvSection):
    """The settings that all VAEs share."""


class BetaVaeConfig(VaeSection):
    """beta-VAE. With beta = 1 it is a plain VAE. The study tries 1, 2, 4, 6, 8 and 16."""

    kind: Literal["beta_vae"] = "beta_vae"
    beta: float = Field(default=4.0, ge=0.0, description="Weight of the Kullback-Leibler divergence.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.beta": log_uniform(1.0, 16.0)} | super().default_search_space()


class AnnealedVaeConfig(VaeSection):
    """AnnealedVAE (arXiv 1804.03599). The study tries the capacities 5, 10, 25, 50, 75 and 100."""

    kind: Literal["annealed_vae"] = "annealed_vae"
    gamma: float = Field(default=1000.0, ge=0.0, description="Weight of the distance of the divergence from C.")
    max_capacity: float = Field(default=25.0, ge=0.0, description="Capacity C after it has risen, in nats.")
    capacity_share: float = Field(
        default=1 / 3,
        gt=0.0,
        le=1.0,
        description="Share of train.num_images during which C rises from 0. The study takes 100,000 of 300,000 steps.",
    )

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.max_capacity": log_uniform(5.0, 100.0)} | super().default_search_space()


class FactorVaeConfig(VaeSection):
    """FactorVAE (arXiv 1802.05983). The study tries 10, 20, 30, 40, 50 and 100."""

    kind: Literal["factor_vae"] = "factor_vae"
    gamma: float = Field(default=35.0, ge=0.0, description="Weight of the total correlation.")
    discriminator_dims: tuple[Size, ...] = Field(
        default=(1000,) * 6, min_length=1, description="Widths of the hidden layers of the discriminator."
    )
    discriminator_rate_scale: float = Field(
        default=1.0, gt=0.0, description="Learning rate of the discriminator, divided by train.learning_rate."
    )

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.gamma": log_uniform(5.0, 100.0)} | super().default_search_space()


class DipVaeSection(VaeSection):
    """The settings of both DIP-VAEs (arXiv 1711.00848). The study tries the weights 1, 2, 5, 10, 20 and 50."""

    off_diagonal_weight: float = Field(
        default=10.0, ge=0.0, description="Weight of the squared covariances of two different units: lambda_od."
    )

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.off_diagonal_weight": log_uniform(0.5, 50.0)} | super().default_search_space()


class DipVaeIConfig(DipVaeSection):
    """DIP-VAE-I, which uses the covariance of the posterior means."""

    kind: Literal["dip_vae_i"] = "dip_vae_i"
    diagonal_factor: float = Field(
        default=10.0, ge=0.0, description="Weight of the variances' distance from 1, divided by off_diagonal_weight."
    )


class DipVaeIIConfig(DipVaeSection):
    """DIP-VAE-II, which uses the covariance of samples of the posteriors."""

    kind: Literal["dip_vae_ii"] = "dip_vae_ii"
    diagonal_factor: float = Field(
        default=1.0, ge=0.0, description="Weight of the variances' distance from 1, divided by off_diagonal_weight."
    )


class BetaTcVaeConfig(VaeSection):
    """beta-TCVAE (arXiv 1802.04942). The study tries 1, 2, 4, 6, 8 and 10."""

    kind: Literal["beta_tcvae"] = "beta_tcvae"
    beta: float = Field(default=6.0, ge=0.0, description="Weight of the total correlation; with 1 this is a plain VAE.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.beta": log_uniform(1.0, 32.0)} | super().default_search_space()


class ProtoVaeConfig(VaeSection):
    """ProtoVAE (after arXiv 2305.09092), reconstructed: beta-VAE, trained with episodes of interventions."""

    kind: Literal["proto_vae"] = "proto_vae"
    beta: float = Field(default=1.0, ge=0.0, description="Weight of the Kullback-Leibler divergence.")
    prototype_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the cross-entropy with which prototypes tell the changed unit."
    )
    isometry_weight: float = Field(
        default=0.1, ge=0.0, description="Weight of the difference of an embedding's length and the size of the change."
    )
    cycle_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the error with which a changed image is encoded again."
    )
    warmup_share: Rate = Field(
        default=0.1, description="Share of train.num_images during which prototype_weight rises from 0."
    )
    intervention: Literal["batch", "prior"] = Field(
        default="batch", description="Where a changed unit's value comes from: another image, or a normal distribution."
    )
    min_kl: float = Field(default=0.1, ge=0.0, description="Divergence above which a unit is changed, in nats.")
    embedding_dim: int = Field(default=64, ge=1, description="Width of the embedding of a pair of images.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        own = {
            "method.prototype_weight": log_uniform(0.1, 30.0),
            "method.isometry_weight": {"kind": "float", "low": 0.0, "high": 10.0},
            "method.beta": log_uniform(1.0, 8.0),
        }
        return own | super().default_search_space()


class DotVaeConfig(VaeSection):
    """DOT-VAE (after arXiv 2210.10920), reconstructed: units open one at a time, beside a residual."""

    kind: Literal["dot_vae"] = "dot_vae"
    hidden_dim: int = Field(default=128, ge=1, description="Width of the dense layers of encoder and decoder.")
    residual_dim: int = Field(default=10, ge=1, description="Values of the residual, which no unit describes.")
    pretraining_share: Rate = Field(default=0.1, description="Share of train.num_images without units.")
    unlock_share: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="Share of train.num_images after which another unit may open."
    )
    min_kl: float = Field(
        default=0.1, ge=0.0, description="Divergence of the last opened unit above which another one opens, in nats."
    )
    max_refusals: int = Field(
        default=2, ge=1, description="Measurements in a row below min_kl after which no more units open."
    )
    max_beta: float = Field(
        default=8.0, ge=0.0, description="Final weight of the residual's divergence, which grows linearly from 1."
    )
    reencoding_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the error with which a changed image is encoded again."
    )
    reencoding_loss: Literal["likelihood", "mse"] = Field(
        default="likelihood", description="That error: divided by the posterior's variance, or squared alone."
    )
    adversarial_weight: float = Field(default=0.1, ge=0.0, description="Weight of the discriminator's verdict.")
    discriminator_rate_scale: float = Field(
        default=2.0, gt=0.0, description="Learning rate of the discriminator, divided by train.learning_rate."
    )
    intervention: Literal["batch", "prior"] = Field(
        default="prior", description="Where a changed unit's value comes from: another image, or a normal distribution."
    )

    def unlock_images(self, num_images: int) -> int:
        """Return the training images between two measurements, after each of which a unit may open."""
        return max(round(self.unlock_share * num_images), 1)

    def warnings(self, run: RunConfig) -> list[str]:
        batch, num_images = run.train.batch_size, run.train.num_images
        first = math.ceil(self.pretraining_share * num_images / batch) * batch  # images seen when the first unit opens
        last = (num_images - 1) // batch * batch  # images seen before the last step
        between = self.unlock_images(num_images)
        measured = last // between - first // between if between > batch else (last - first) // batch
        most = 1 + measured if first <= last else 0
        if most >= self.num_units:
            return []
        return [
            f"at most {most} of method.num_units={self.num_units} units can open: lower method.unlock_share="
            f"{self.unlock_share:g} or method.pretraining_share={self.pretraining_share:g}"
        ]

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        own = {
            "method.max_beta": log_uniform(2.0, 32.0),
            "method.unlock_share": log_uniform(0.02, 0.1),
            "method.pretraining_share": {"kind": "float", "low": 0.05, "high": 0.3},
            "method.adversarial_weight": log_uniform(0.01, 1.0),
            "method.reencoding_weight": log_uniform(0.1, 10.0),
        }
        return own | super().default_search_space()


VaeConfig = (
    BetaVaeConfig
    | AnnealedVaeConfig
    | FactorVaeConfig
    | DipVaeIConfig
    | DipVaeIIConfig
    | BetaTcVaeConfig
    | ProtoVaeConfig
    | DotVaeConfig
)


def log_uniform(low: float, high: float) -> dict[str, Any]:
    """Return the domain of a float that a sweep searches on a logarithmic scale."""
    return {"kind": "float", "low": low, "high": high, "log": True}
