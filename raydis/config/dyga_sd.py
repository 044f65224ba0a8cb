"""Configuration of DyGA+SD: diffusion with Dynamic Gaussian Anchoring (DyGA) and Skip Dropout (SD), arXiv 2410.23820.

The defaults are the sizes of the paper and of the authors' released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raydis.config.method import MethodSection
from raydis.config.section import Model, Rate, Size
from raydis.config.tree import is_tree

if TYPE_CHECKING:
    from raydis.config.run import RunConfig

MAX_COVARIANCE_NUMBERS = 2**28  # in the covariances of all units' mixtures: 1 GiB in float32


class EncoderConfig(Model):
    """DyGA+SD's encoder: it maps an image to one scalar per unit, and an MLP per unit maps the scalar to a token."""

    kind: Literal["conv"] = "conv"
    channels: tuple[Size, ...] = Field(
        default=(64, 128, 256, 256, 256),
        min_length=2,
        description="Channels of the convolutions, each of which halves the size, except for the first.",
    )
    stem_stride: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Stride of the first convolution. 1: a 7x7 convolution at full size, as published; s > 1: an "
        "embedding of s x s patches.",
    )
    hidden_dims: tuple[Size, ...] = Field(
        default=(4096, 256),
        description="Widths of the hidden layers between the flattened feature map and the units.",
    )
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="Norm of the convolutions. With `group`, the result for an image does not depend on its batch.",
    )
    token_hidden_dims: tuple[Size, ...] = Field(
        default=(256, 512), min_length=1, description="Widths of the hidden layers of each unit's MLP."
    )
    token_activation: Literal["relu", "none"] = Field(default="relu", description="Last activation of each unit's MLP.")


class ResidualConvolutionsConfig(Model):
    """Strided convolutions and residual blocks, as in the released code of EncDiff and DisDiff."""

    model_dim: int = Field(default=128, ge=2, description="Channels of all convolutions.")
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="Norm of the convolutions. `batch`, as published: in training over the images that all workers "
        "compute at once, later by running statistics. With `group`, an image never depends on its batch.",
    )

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError if the convolutions cannot halve the image four times."""
        if image_size % 16:
            raise ValueError(f"data.image_size={image_size} cannot be divided by 16 in the encoder")


class ResidualEncoderConfig(ResidualConvolutionsConfig):
    """EncDiff's encoder: it maps an image to one scalar per unit, and an MLP per unit maps the scalar to a token."""

    kind: Literal["residual"] = "residual"
    token_hidden_dims: tuple[Size, ...] = Field(
        default=(64, 128), min_length=1, description="Widths of the hidden layers of each unit's MLP."
    )


def _with_kind(tree: Any) -> Any:
    """Add the kind of DyGA+SD's encoder to a section that has none."""
    return {"kind": "conv", **tree} if is_tree(tree) else tree


AnyEncoderConfig = Annotated[
    Annotated[EncoderConfig | ResidualEncoderConfig, Field(discriminator="kind")], BeforeValidator(_with_kind)
]


class UNetSizes(Model):
    """Sizes of a denoising U-Net."""

    model_dim: int = Field(default=64, ge=8, description="Channels at the finest level.")
    multipliers: tuple[Size, ...] = Field(
        default=(1, 2, 4, 4), min_length=1, description="Channels of each level, divided by model_dim."
    )
    num_blocks: int = Field(default=2, ge=1, description="Residual blocks per level.")
    attention_sizes: tuple[Size, ...] = Field(
        default=(16, 8, 4),
        description="Sizes (px of the latent) of the levels whose blocks attend to the tokens, or to the pixels in a "
        "U-Net without tokens. The middle always does.",
    )
    num_heads: int = Field(default=8, ge=1, description="Attention heads.")

    @model_validator(mode="after")
    def _heads(self) -> Self:
        for multiplier in self.multipliers:
            if self.model_dim * multiplier % self.num_heads:
                raise ValueError(
                    f"num_heads={self.num_heads} must divide model_dim*multiplier={self.model_dim * multiplier}"
                )
        return self

    def check_latent_size(self, latent_size: int, section: str) -> None:
        """Raise ValueError if the U-Net does not fit latents of this size, px. `section` is its dotted key."""
        sizes = [latent_size >> level for level in range(len(self.multipliers))]
        if latent_size % (1 << (len(self.multipliers) - 1)):
            raise ValueError(
                f"a latent of {latent_size} px cannot be halved {len(self.multipliers) - 1} times: "
                f"give {section}.multipliers fewer levels"
            )
        for field in (name for name in type(self).model_fields if name.endswith("_sizes")):
            if unknown := sorted(set(getattr(self, field)) - set(sizes)):
                raise ValueError(f"{section}.{field} has {unknown}, but the U-Net's levels have sizes {sizes} px")


class UNetConfig(UNetSizes):
    """Denoising U-Net with cross-attention to the tokens, and Skip Dropout (SD) on its skip connections."""

    dropout_rate: Rate = Field(default=0.1, description="Dropout inside residual blocks.")
    skip_dropout_rate: Rate = Field(
        default=0.2, description="Probability that a channel of a skip connection is dropped."
    )
    skip_dropout_sizes: tuple[Size, ...] = Field(
        default=(16, 8), description="Sizes (px of the latent) of the levels with Skip Dropout."
    )


class AnchorConfig(Model):
    """Dynamic Gaussian Anchoring: each unit has a Gaussian mixture, whose means (anchors) attract the unit's tokens."""

    mode: Literal["off", "constant", "ramp", "release"] = Field(
        default="constant",
        description="How far a token moves to its anchor. `constant`: shift_rate of the way; `ramp`: a share that "
        "rises linearly to shift_rate in training; `release`: the formula of the published code, for comparisons only. "
        "`constant` replaces the former `relative`, whose factor exp(-distance) had a median of 0.995.",
    )
    num_gaussians: int = Field(default=8, ge=1, le=64, description="Components of a unit's mixture before splitting.")
    max_gaussians: int = Field(default=32, ge=1, le=256, description="Most components of a mixture after splitting.")
    shift_rate: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share lambda of the way to its anchor that a token moves."
    )
    inertia: float | None = Field(
        default=32.0,
        gt=0.0,
        description="Weight of an anchor, as a number of tokens, in the moving average by which it follows its tokens "
        "between fits. Null: anchors stay fixed between fits, as in the released code. Mode `release` ignores it.",
    )
    num_splits: int = Field(default=3, ge=0, description="Rounds in which components with a large spread are split.")
    split_spread: float = Field(
        default=0.1,
        gt=0.0,
        description="Root-mean-square distance to its mean, of normalised tokens, above which a component is split. "
        "The released code uses 0.5 (of a mean distance), which never splits a component of trained tokens.",
    )
    min_count: float = Field(default=10.0, ge=1.0, description="Soft count below which a component is dropped.")
    em_steps: int = Field(
        default=30, ge=1, description="Most steps of expectation maximisation (EM) before and after splitting."
    )
    fit_samples: int = Field(default=10_000, ge=16, description="Images whose tokens a mixture is fitted to.")
    refit_images: int = Field(
        default=480_000,
        ge=1,
        description="Training images between two fits. Until the first fit the run trains without anchors: for a tenth "
        "of the default budget, or a hundredth of the published one (both refit after each epoch of 3D Shapes).",
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.num_gaussians > self.max_gaussians:
            raise ValueError(f"num_gaussians={self.num_gaussians} must not exceed max_gaussians={self.max_gaussians}")
        return self


class DiffusionConfig(Model):
    """The noise schedule, and what the U-Net learns to predict."""

    schedule: Literal["ldm_linear", "cosine", "straight"] = Field(
        default="ldm_linear", description="Noise schedule; `straight` is the path of flow matching."
    )
    num_timesteps: int = Field(default=1000, ge=2, description="Steps of the forward process.")
    prediction: Literal["noise", "velocity", "sample", "flow"] = Field(
        default="noise",
        description="What the U-Net predicts. `noise` is published; `velocity` and `sample` (arXiv 2202.00512) make it "
        "rely on the tokens at noisy timesteps; `flow` is the difference of noise and sample, as in flow matching.",
    )
    loss: Literal["l1", "l2"] = Field(default="l1", description="Norm of the prediction error.")
    shift: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Shift of the training times (arXiv 2403.03206). 1 draws them uniformly; above 1, more of them are "
        "noisy, where only the tokens can tell what the image is.",
    )
    default_steps: int | None = Field(
        default=None,
        ge=1,
        description="Sampling steps where none are asked for. Null: 20, or num_timesteps if that is less. One step "
        "draws the mean of the images that the tokens allow. It is best after a short training, which cannot teach the "
        "U-Net to denoise at all times.",
    )

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if (self.default_steps or 1) > self.num_timesteps:
            raise ValueError(
                f"default_steps={self.default_steps} must not exceed num_timesteps={self.num_timesteps}: lower it"
            )
        return self


class DygaSdConfig(MethodSection):
    """DyGA+SD. With `anchors.mode: off` and `unet.skip_dropout_rate: 0` it is EncDiff (arXiv 2402.09712).

    EncDiff's own encoder is `encoder.kind: residual`.
    """

    has_blocks: ClassVar[bool] = True
    uses_first_stage: ClassVar[bool] = True

    kind: Literal["dyga_sd"] = "dyga_sd"
    num_units: int = Field(default=20, ge=2, le=256, description="Latent units N.")
    unit_dim: int = Field(default=32, ge=1, le=1024, description="Width D of a unit's token.")
    encoder: AnyEncoderConfig = EncoderConfig()
    unet: UNetConfig = UNetConfig()
    anchors: AnchorConfig = AnchorConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    overlap_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of a penalty on units whose tokens write to the same places (0 to 1, cosine of the maps of "
        "what cross-attention writes, mean over pairs and blocks); reconstructed from a summary of arXiv 2602.05214.",
    )

    @model_validator(mode="after")
    def _anchor_buffers(self) -> Self:
        count = self.num_units * self.anchors.max_gaussians * self.unit_dim**2
        if count > MAX_COVARIANCE_NUMBERS:
            raise ValueError(
                f"num_units={self.num_units}, anchors.max_gaussians={self.anchors.max_gaussians} and "
                f"unit_dim={self.unit_dim} make covariances of {4 * count / 2**30:.1f} GiB, more than "
                f"{4 * MAX_COVARIANCE_NUMBERS // 2**30}: lower unit_dim, which counts squared, or "
                "anchors.max_gaussians, or num_units"
            )
        return self

    def check(self, run: RunConfig) -> None:
        self.unet.check_latent_size(run.latent_size, "method.unet")
        if isinstance(self.encoder, ResidualEncoderConfig):
            self.encoder.check_image_size(run.data.image_size)
            return
        shrink = self.encoder.stem_stride << (len(self.encoder.channels) - 1)
        if run.data.image_size % shrink:
            raise ValueError(f"data.image_size={run.data.image_size} cannot be divided by {shrink} in the encoder")

    def warnings(self, run: RunConfig) -> list[str]:
        train, anchors = run.train, self.anchors
        last_start = (train.num_images - 1) // train.batch_size * train.batch_size  # images seen before the last step
        if anchors.mode == "off" or not anchors.shift_rate or anchors.refit_images <= last_start:
            return []
        return [
            f"method.anchors.refit_images={anchors.refit_images} is not reached within train.num_images="
            f"{train.num_images}: the anchors are never fitted, and the run trains without them. Lower it, raise "
            "train.num_images, or set method.anchors.mode=off"
        ]

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        most = min(16, self.anchors.max_gaussians)
        return {
            "method.anchors.num_gaussians": {"kind": "int", "low": min(4, most), "high": most},
            "method.unet.skip_dropout_rate": {"kind": "float", "low": 0.0, "high": 0.4},
            "method.unit_dim": {"kind": "choice", "values": [16, 32, 64]},
        }
