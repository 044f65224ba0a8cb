"""Configuration of DisDiff (arXiv 2301.13721) and of the diffusion model without units that it is built on.

The defaults are the sizes of the released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raydis.config.dyga_sd import DiffusionConfig, ResidualConvolutionsConfig, UNetSizes
from raydis.config.method import MethodSection, Pretrained
from raydis.config.section import Model, Rate

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class UnconditionalUNetConfig(UNetSizes):
    """Denoising U-Net without tokens, and with self-attention."""

    dropout_rate: Rate = Field(default=0.0, description="Dropout inside residual blocks.")


class UnconditionalNetwork(Model):
    """A diffusion model without a condition: its U-Net, its noise schedule and what it predicts."""

    unet: UnconditionalUNetConfig = UnconditionalUNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()


class UnconditionalDiffusionConfig(UnconditionalNetwork, MethodSection):
    """A diffusion model without a condition, on the latents of a first stage. Other methods borrow it."""

    scored: ClassVar[bool] = False
    has_blocks: ClassVar[bool] = True
    uses_first_stage: ClassVar[bool] = True

    kind: Literal["unconditional_diffusion"] = "unconditional_diffusion"

    def check(self, run: RunConfig) -> None:
        self.unet.check_latent_size(run.latent_size, "method.unet")


class PretrainedDiffusion(UnconditionalNetwork, Pretrained):
    """The diffusion model that a separate run has trained, with the same network settings and first stage."""

    # A section is frozen, so that a narrower type than the base's is safe, which pyright cannot know of pydantic.
    kind: Literal["unconditional_diffusion"] = "unconditional_diffusion"  # type: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _predicts_noise(self) -> Self:
        if self.diffusion.prediction != "noise":
            raise ValueError(
                f"diffusion.prediction={self.diffusion.prediction}: the fields are defined as shifts of predicted "
                "noise, so use a model with diffusion.prediction=noise"
            )
        return self


class DisDiffConfig(MethodSection):
    """DisDiff: units that are vectors, each of which shifts what a frozen diffusion model predicts."""

    has_blocks: ClassVar[bool] = True
    uses_first_stage: ClassVar[bool] = True

    kind: Literal["disdiff"] = "disdiff"
    num_units: int = Field(
        default=6,
        ge=2,
        le=256,
        description="Latent units N. The released code uses 6, and the paper's better results are said to use 10. The "
        "time of a step grows with N.",
    )
    unit_dim: int = Field(default=32, ge=1, le=1024, description="Width D of a unit's vector.")
    encoder: ResidualConvolutionsConfig = ResidualConvolutionsConfig()
    concept_dim: int = Field(
        default=128, ge=2, le=1024, description="Size of the orthogonal matrix whose first N rows embed the units."
    )
    disentanglement_weight: float = Field(
        default=0.05,
        ge=0.0,
        description="Weight lambda of the invariant and the variant loss. The released code uses 0.01 for MPI3D.",
    )
    weighting: Literal["latent", "image"] = Field(
        default="latent",
        description="Where the squared effect of a field is measured, by which these two losses are weighted for each "
        "image. `latent`: on the predicted latents (type Z of the released code); `image`: on the images (IM).",
    )
    pretrained: PretrainedDiffusion = PretrainedDiffusion()

    @property
    def borrowed(self) -> Pretrained:
        return self.pretrained

    def check(self, run: RunConfig) -> None:
        self.pretrained.unet.check_latent_size(run.latent_size, "method.pretrained.unet")
        self.encoder.check_image_size(run.data.image_size)
        if self.concept_dim < self.num_units:
            raise ValueError(
                f"method.concept_dim={self.concept_dim} gives no {self.num_units} orthogonal embeddings: use at least "
                f"method.num_units={self.num_units}"
            )

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.disentanglement_weight": {"kind": "float", "low": 1e-3, "high": 1.0, "log": True},
            "method.unit_dim": {"kind": "choice", "values": [8, 16, 32, 64]},
        }
