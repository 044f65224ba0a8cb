"""Configuration of the optimisation, and of when and how a run is scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raydis.config.section import Model, Rate, Size

# The keys of METRICS in raydis/metrics/table.py, so that a wrong name is refused when a configuration is read.
MetricName = Literal[
    "factor_vae",
    "dci",
    "mig",
    "sap",
    "sap_continuous",
    "modularity_explicitness",
    "beta_vae",
    "irs",
    "infomec",
    "med",
    "dci_es",
    "tad",
    "self_mig",
    "sample_efficiency",
    "mcc",
    "scalar_factor_vae",
    "grouped_dci",
    "leakage",
]

# With a discriminator, the error of a wrong name in a list does not mention `all` as well.
MetricChoice = Annotated[
    Annotated[tuple[MetricName, ...], Field(min_length=1), Tag("list")] | Annotated[Literal["all"], Tag("all")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "list"),
]


class TrainConfig(Model):
    """The training budget, the optimiser, and the intervals of reports and checkpoints."""

    num_images: int = Field(
        default=4_800_000,
        ge=1,
        description="Training budget: images seen by all workers together. The default is a tenth of the 48 million "
        "with which the released code trains on 3D Shapes.",
    )
    batch_size: int = Field(default=512, ge=1, description="Images per optimiser step, over all workers and parts.")
    learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=1.0,
        description="Learning rate of AdamW. It is not scaled by the number of workers.",
    )
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up; `cosine` lowers it to 0."
    )
    warmup_images: int = Field(
        default=0, ge=0, description="Training images during which the learning rate rises linearly from 0."
    )
    weight_decay: float = Field(default=0.01, ge=0.0, description="Weight decay of AdamW.")
    max_grad_norm: float | None = Field(
        default=None,
        gt=0.0,
        description="Largest global norm of the gradients, to which they are clipped; null: no clipping.",
    )
    ema_decay: Rate = Field(
        default=0.9999,
        description="Decay of the moving average of the weights: min(decay, (1+n)/(10+n)) after n steps.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Precision of the forward pass (autocast). The released code trains in fp32. On a GPU with fp32, "
        "convolutions may use TF32 and matrix products do not, as is PyTorch's default.",
    )
    report_images: int = Field(default=48_000, ge=1, description="Training images between two progress reports.")
    checkpoint_images: int = Field(
        default=480_000,
        ge=1,
        description="Training images between two checkpoints. Each is written at the next progress report.",
    )


class EvaluationConfig(Model):
    """How a run is scored: `published` follows disentanglement_lib, and `search` is a cheaper version of it."""

    protocol: Literal["published", "search", "none"] = Field(
        default="search", description="Evaluation protocol at the end of a run; `none`: no scores."
    )
    estimator: Literal["reference", "hist", "tree"] | None = Field(
        default=None,
        description="Classifier of DCI; null: the protocol's own (`published`: `reference`, `search`: `hist`).",
    )
    metrics: MetricChoice | None = Field(
        default=None,
        description="Metrics that are computed, as listed in raydis/metrics/README.md; `all`: every one that fits the "
        "factors; null: `factor_vae`, `dci` and `mig`.",
    )
    max_images: int = Field(
        default=10_000, ge=64, description="Most images of the sub-grid that the `search` protocol encodes."
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the metrics' random samples. Use the same for all models that are compared.",
    )
    num_reconstructions: int | None = Field(
        default=None,
        ge=0,
        description="Number of images that the finished model draws again from their own codes, to measure PSNR and "
        "SSIM, and the Fréchet distance if `frechet_network` is set. A method that draws from noise starts from that "
        "of the seed. null: 1,024 for a first stage, and none for a method with units.",
    )
    frechet_network: str | None = Field(
        default=None,
        description="File of a TorchScript network, as a local path or s3:// URI, whose features the Fréchet distance "
        "compares; with the Inception network it is FID. The file is a program, so use only one that you trust.",
    )
    rungs: tuple[Size, ...] = Field(
        default=(),
        description="Rising numbers of training images after which the `search` protocol scores the averaged model "
        "during training, which gives a learning curve. The final model is scored by `protocol`.",
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _listed(cls, metrics: Any) -> Any:
        if isinstance(metrics, str) and metrics != "all":
            raise ValueError(f"found {metrics!r}, expected a list of metrics, as in [{metrics}], or all")
        return metrics

    @model_validator(mode="after")
    def _compared(self) -> Self:
        if self.frechet_network is not None and (self.num_reconstructions or 0) < 2:
            raise ValueError(
                f"frechet_network needs reconstructions to compare, found num_reconstructions="
                f"{self.num_reconstructions}: set evaluation.num_reconstructions=10000, or another number above 1"
            )
        return self

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs={list(self.rungs)} must rise")
        if self.rungs and self.protocol == "none":
            raise ValueError("rungs are scored, but protocol=none scores nothing: remove one of them")
        return self
