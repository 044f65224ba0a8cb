"""Configuration of the variational autoencoders (VAEs): beta-VAE and FactorVAE.

The defaults are those of disentanglement_lib (Locatello et al., arXiv 1811.12359).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raydis.config.method import MethodSection
from raydis.config.section import Size

if TYPE_CHECKING:
    from raydis.config.run import RunConfig

REDUCTION = 16  # factor by which the convolutions reduce the image size


class VaeSection(MethodSection):
    """The settings that all VAEs share."""

    num_units: int = Field(default=10, ge=2, le=256, description="Latent units N.")
    hidden_dim: int = Field(default=256, ge=1, description="Width of the dense layers of encoder and decoder.")

    def check(self, run: RunConfig) -> None:
        if run.data.image_size % REDUCTION:
            raise ValueError(
                f"data.image_size={run.data.image_size} must be a multiple of {REDUCTION} for "
                f"method.kind={run.method.kind}"
            )


class BetaVaeConfig(VaeSection):
    """beta-VAE. With beta = 1 it is a plain VAE."""

    kind: Literal["beta_vae"] = "beta_vae"
    beta: float = Field(default=4.0, ge=0.0, description="Weight of the Kullback-Leibler divergence.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.beta": {"kind": "float", "low": 1.0, "high": 16.0, "log": True},
            "method.num_units": {"kind": "int", "low": 6, "high": 20},
        }


class FactorVaeConfig(VaeSection):
    """FactorVAE (arXiv 1802.05983)."""

    kind: Literal["factor_vae"] = "factor_vae"
    gamma: float = Field(default=35.0, ge=0.0, description="Weight of the total correlation.")
    discriminator_dims: tuple[Size, ...] = Field(
        default=(1000,) * 6, min_length=1, description="Widths of the hidden layers of the discriminator."
    )
    discriminator_rate_scale: float = Field(
        default=1.0, gt=0.0, description="Learning rate of the discriminator, divided by train.learning_rate."
    )

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.gamma": {"kind": "float", "low": 5.0, "high": 100.0, "log": True},
            "method.num_units": {"kind": "int", "low": 6, "high": 20},
        }
