"""Every knob of one training run, as frozen pydantic models.

A `RunConfig` says all that decides a run's result: data, first stage, method, training, evaluation, seed.
Most names carry their unit: `_size` px, `_images` images seen, `_dim` numbers of a vector or channels, prefix `num_` a
count. Budgets are counted in images seen, so that runs with different batch sizes compare.

The defaults are the reference sizes of DyGA+SD (arXiv 2410.23820 and its released code) unless a field says
otherwise. Nothing here imports torch or ray.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raydis.section import Model, Rate, Size
from raydis.stageconfig import FirstStageConfig, KlConfig, KlStage, PatchPcaStage, PixelStage, VqConfig, VqStage
from raydis.trainconfig import EvaluationConfig, TrainConfig

PROCEDURAL_SETS = ("shapes3d_procedural", "dsprites_procedural")
MAX_COVARIANCE_NUMBERS = 2**28  # of all units' mixtures: 1 GiB in float32


class DataConfig(Model):
    """Which images, and which part of their factor grid."""

    name: Literal[
        "shapes3d_procedural",
        "dsprites_procedural",
        "shapes3d",
        "dsprites",
        "mpi3d",
        "cars3d",
        "sprites",
        "image_folder",
    ] = Field(
        default="shapes3d_procedural", description="Data set; `*_procedural` sets are rendered, the others are files."
    )
    path: str | None = Field(
        default=None,
        description="File or folder of a data set that is read: local path or s3:// URI. For sprites, a clone of "
        "github.com/YingzhenLi/Sprites at commit 3ce4048 (CC-BY-SA 3.0 or GPL 3.0), or the .npz of its walks.",
    )
    image_size: int = Field(default=64, ge=8, le=512, description="Height and width of the images, px.")
    levels: dict[str, int | tuple[int, ...]] = Field(
        default_factory=dict,
        description="Sub-grid by factor name: a count n keeps level floor(i*K/n), i < n; a list keeps those levels.",
    )

    @model_validator(mode="after")
    def _path(self) -> Self:
        if self.name in PROCEDURAL_SETS and self.path is not None:
            raise ValueError(f"data.name={self.name} is rendered, not read: remove data.path={self.path}")
        if self.name not in PROCEDURAL_SETS and self.path is None:
            raise ValueError(f"data.name={self.name} is read from files: set data.path to a local path or s3:// URI")
        if self.name == "image_folder" and self.levels:
            raise ValueError("data.levels needs factors, but an image_folder has none: remove data.levels")
        return self


class EncoderConfig(Model):
    """Image encoder: one scalar a unit, then a private MLP a unit that turns the scalar into a token."""

    channels: tuple[Size, ...] = Field(
        default=(64, 128, 256, 256, 256),
        min_length=2,
        description="Channels of the convolutions; all but the first halve.",
    )
    stem_stride: int = Field(
        default=1,
        ge=1,
        le=16,
        description="First convolution: 1 is 7x7 at full size as published, s > 1 an s x s patch embedding.",
    )
    hidden_dims: tuple[Size, ...] = Field(
        default=(4096, 256), description="Hidden layers between the flattened map and units."
    )
    norm: Literal["batch", "group"] = Field(
        default="batch", description="Norm of the convolutions; `group` has no batch mates."
    )
    token_hidden_dims: tuple[Size, ...] = Field(
        default=(256, 512), min_length=1, description="Hidden layers of a unit's MLP."
    )
    token_activation: Literal["relu", "none"] = Field(default="relu", description="Last activation of a unit's MLP.")


class UNetConfig(Model):
    """Denoising U-Net with cross-attention to the tokens, and Skip Dropout on its skip connections."""

    model_dim: int = Field(default=64, ge=8, description="Channels at the finest level.")
    multipliers: tuple[Size, ...] = Field(
        default=(1, 2, 4, 4), min_length=1, description="Channels of a level / model_dim."
    )
    num_blocks: int = Field(default=2, ge=1, description="Residual blocks a level.")
    attention_sizes: tuple[Size, ...] = Field(
        default=(16, 8, 4),
        description="Spatial sizes, latent px, whose blocks attend to the tokens (the middle always does).",
    )
    num_heads: int = Field(default=8, ge=1, description="Attention heads.")
    dropout_rate: Rate = Field(default=0.1, description="Dropout inside residual blocks.")
    skip_dropout_rate: Rate = Field(
        default=0.2, description="Probability that a channel of a skip connection is dropped."
    )
    skip_dropout_sizes: tuple[Size, ...] = Field(
        default=(16, 8), description="Spatial sizes, latent px, whose skip connections are dropped from."
    )

    @model_validator(mode="after")
    def _heads(self) -> Self:
        for multiplier in self.multipliers:
            if self.model_dim * multiplier % self.num_heads:
                raise ValueError(
                    f"num_heads={self.num_heads} must divide model_dim*multiplier={self.model_dim * multiplier}"
                )
        return self


class AnchorConfig(Model):
    """Dynamic Gaussian Anchoring: a Gaussian mixture a unit, and the pull of tokens towards its means."""

    mode: Literal["off", "constant", "ramp", "release"] = Field(
        default="constant",
        description="`constant`: every token moves shift_rate of the way; `ramp`: the share grows linearly to "
        "shift_rate over training; `release`: the published code's formula, for parity studies only. `constant` "
        "replaces `relative`, whose factor exp(-distance) had the median 0.995.",
    )
    num_gaussians: int = Field(default=8, ge=1, le=64, description="Components that a unit's mixture starts from.")
    max_gaussians: int = Field(default=32, ge=1, le=256, description="Hard upper bound after splitting.")
    shift_rate: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share of the way to the anchor that a token moves (lambda)."
    )
    inertia: float | None = Field(
        default=32.0,
        gt=0.0,
        description="Tokens that an anchor weighs as while it follows the tokens between fits; null: it stands still, "
        "as released. `release` always does.",
    )
    num_splits: int = Field(default=3, ge=0, description="Rounds of splitting loose components.")
    split_spread: float = Field(
        default=0.1,
        gt=0.0,
        description="Root-mean-square distance to the centre above which a component splits, normalised tokens. The "
        "released 0.5 (of a mean distance) never splits a component of trained tokens.",
    )
    min_count: float = Field(default=10.0, ge=1.0, description="Soft count below which a component is dropped.")
    em_steps: int = Field(default=30, ge=1, description="EM steps before and after splitting.")
    fit_samples: int = Field(default=10_000, ge=16, description="Images whose tokens a fit sees.")
    refit_images: int = Field(
        default=480_000,
        ge=1,
        description="Images between two fits; the first fit ends the start without anchors, a tenth of a run of the "
        "default length and a hundredth of a published one (both refit after an epoch of 3D Shapes).",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _not_relative(cls, mode: Any) -> Any:
        if mode == "relative":
            raise ValueError(
                "relative was removed, because its shift was that of constant to 0.5 % (median): use constant"
            )
        return mode

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.num_gaussians > self.max_gaussians:
            raise ValueError(f"num_gaussians={self.num_gaussians} must not exceed max_gaussians={self.max_gaussians}")
        return self


class DiffusionConfig(Model):
    """Noise schedule and objective."""

    schedule: Literal["ldm_linear", "cosine"] = Field(default="ldm_linear", description="Noise schedule.")
    num_timesteps: int = Field(default=1000, ge=2, description="Steps of the forward process.")
    prediction: Literal["noise", "velocity", "sample"] = Field(
        default="noise",
        description="What the U-Net predicts: the noise, as published; `velocity` or `sample` (arXiv 2202.00512) make "
        "the tokens count at noisy times.",
    )
    loss: Literal["l1", "l2"] = Field(default="l1", description="Norm of the error of what is predicted.")


class DygaSdConfig(Model):
    """DyGA+SD, and with `anchors.mode: off` and `unet.skip_dropout_rate: 0` EncDiff."""

    family: Literal["dyga_sd"] = "dyga_sd"
    num_units: int = Field(default=20, ge=2, le=256, description="Latent units N.")
    unit_dim: int = Field(default=32, ge=1, le=1024, description="Width D of a unit's token.")
    encoder: EncoderConfig = EncoderConfig()
    unet: UNetConfig = UNetConfig()
    anchors: AnchorConfig = AnchorConfig()
    diffusion: DiffusionConfig = DiffusionConfig()

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


def _with_family(tree: Any) -> Any:
    """A method that does not say its family is DyGA+SD."""
    return {"family": "dyga_sd", **tree} if isinstance(tree, dict) else tree


MethodConfig = Annotated[
    Annotated[DygaSdConfig | VqConfig | KlConfig, Field(discriminator="family")], BeforeValidator(_with_family)
]


class ComputeConfig(Model):
    """Where a run computes: no part of what identifies it.

    Batch size, learning rate, data order, times and noise are the run's own, so the result does not depend on how many
    workers share a batch, nor on the parts they take it in, but for rounding and two things: each worker drops channels
    by draws of its own, and a batch norm sees, from all workers together, the images that are in a network at once.
    With these, the numbers are those of another equally good run. (`anchors.mode: release` is a third: its formula sees
    one worker's part.)
    """

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto`: a GPU where there is one.")
    num_workers: int = Field(
        default=1, ge=1, description="Data-parallel workers, among which a batch is shared out equally."
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="Fewest workers to go on with where the cluster has no place for all, as after a lost node; each "
        "then takes a larger share. Null: `num_workers`, so the run waits.",
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Images that a worker puts through the networks at once, a question of memory: a larger share goes "
        "in equal parts whose gradients add up. Null: its whole share.",
    )
    num_cpus: float = Field(default=1, gt=0, description="CPUs a worker.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs a worker; a fraction lets workers share one.")
    compile: Literal["off", "blocks", "graph", "full"] = Field(
        default="off",
        description="How a step is launched. `graph`: captured once as a CUDA graph and replayed; `blocks`: the "
        "U-Net's blocks by torch.compile, which takes a while at the start; `full`: both. `graph` and "
        "`full` want one worker on a GPU, and have not run on one yet: hence the default.",
    )
    channels_last: bool = Field(
        default=False,
        description="Layout of the trained networks' weights, and so of their maps: channels innermost. Convolutions "
        "on a GPU can be faster with it; not measured on one yet: hence the default. Dropout draws in its order.",
    )

    @model_validator(mode="after")
    def _one_graph(self) -> Self:
        if self.compile in ("graph", "full") and self.num_workers > 1:
            raise ValueError(
                f"compile={self.compile} captures the step of one worker, not of num_workers={self.num_workers}: "
                "use off or blocks"
            )
        if self.compile in ("graph", "full") and self.device == "cpu":
            raise ValueError(
                f"compile={self.compile} captures a CUDA graph, which device=cpu has none of: use off or blocks"
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} must not exceed num_workers={self.num_workers}")
        return self


class RunConfig(Model):
    """One training run."""

    data: DataConfig = DataConfig()
    first_stage: FirstStageConfig = PatchPcaStage()
    method: MethodConfig = DygaSdConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    seed: int = Field(default=0, ge=0, description="Seed of weights, data order and noise.")

    @property
    def latent_size(self) -> int:
        """Side of the first stage's latent, px."""
        match self.first_stage:
            case PixelStage():
                return self.data.image_size
            case PatchPcaStage(patch_size=reduction):
                return self.data.image_size // reduction
            case VqStage() | KlStage() as stage:
                return self.data.image_size // stage.reduction

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        match self.first_stage:
            case PatchPcaStage(patch_size=patch_size) if self.data.image_size % patch_size:
                raise ValueError(
                    f"first_stage.patch_size={patch_size} must divide data.image_size={self.data.image_size}"
                )
            case VqStage() | KlStage() as stage:
                stage.check_image_size(self.data.image_size, "first_stage")
        match self.method:
            case DygaSdConfig() as method:
                self._check_unet(method)
            case VqConfig() | KlConfig() as method:
                self._check_autoencoder(method)
        if self.train.batch_size % self.compute.num_workers:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of "
                f"compute.num_workers={self.compute.num_workers}"
            )
        return self

    def _check_unet(self, method: DygaSdConfig) -> None:
        unet = method.unet
        sizes = [self.latent_size >> level for level in range(len(unet.multipliers))]
        if self.latent_size % (1 << (len(unet.multipliers) - 1)):
            raise ValueError(
                f"a latent of {self.latent_size} px cannot be halved {len(unet.multipliers) - 1} times: "
                "give method.unet.multipliers fewer levels"
            )
        for field in ("attention_sizes", "skip_dropout_sizes"):
            unknown = sorted(set(getattr(unet, field)) - set(sizes))
            if unknown:
                raise ValueError(f"method.unet.{field} has {unknown}, but the U-Net's levels have sizes {sizes} px")
        shrink = method.encoder.stem_stride << (len(method.encoder.channels) - 1)
        if self.data.image_size % shrink:
            raise ValueError(f"data.image_size={self.data.image_size} cannot be divided by {shrink} in the encoder")

    def _check_autoencoder(self, method: VqConfig | KlConfig) -> None:
        method.check_image_size(self.data.image_size, "method")
        if not isinstance(self.first_stage, PixelStage):
            raise ValueError(
                f"method.family={method.family} is a first stage and sees the pixels themselves: "
                f"set first_stage.kind=pixel instead of {self.first_stage.kind}"
            )
        if method.perceptual_weights is not None and self.data.image_size < 16:
            raise ValueError(
                f"VGG16 halves its input four times, which data.image_size={self.data.image_size} does not bear: "
                "remove method.perceptual_weights"
            )
        if method.discriminator_weight and self.data.image_size >> len(method.discriminator_channels) < 1:
            raise ValueError(
                f"method.discriminator_channels={list(method.discriminator_channels)} halve an image of "
                f"data.image_size={self.data.image_size} px too often: give it fewer"
            )
        if method.discriminator_weight and method.discriminator_start_images >= self.train.num_images:
            raise ValueError(
                f"method.discriminator_start_images={method.discriminator_start_images} lies behind the end of "
                f"train.num_images={self.train.num_images}: lower it, or set method.discriminator_weight=0"
            )
        if self.compute.compile in ("blocks", "full"):
            raise ValueError(
                f"compute.compile={self.compute.compile} compiles the U-Net's blocks, and method.family="
                f"{method.family} has no U-Net: set compute.compile=off or compute.compile=graph"
            )
        if self.evaluation.protocol != "none":
            raise ValueError(
                f"method.family={method.family} has no units to score: "
                f"set evaluation.protocol=none instead of {self.evaluation.protocol}"
            )
