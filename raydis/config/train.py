"""Configuration of a run's course: how it is optimised, and when and how it scores itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raydis.config.section import Model, Rate, Size


class TrainConfig(Model):
    """Optimisation."""

    num_images: int = Field(
        default=4_800_000,
        ge=1,
        description="Budget: images seen, over all workers. A tenth of the 48 million that the release trains on "
        "3D Shapes.",
    )
    batch_size: int = Field(
        default=512, ge=1, description="Images a step of the optimiser, over all workers and parts."
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=1.0,
        description="AdamW learning rate, for steps of `batch_size` images: however many workers share them, it stays.",
    )
    learning_rate_schedule: Literal["constant", "cosine"] = Field(default="constant", description="After the warm-up.")
    warmup_images: int = Field(
        default=0, ge=0, description="Images over which the learning rate rises linearly from 0."
    )
    weight_decay: float = Field(default=0.01, ge=0.0, description="AdamW weight decay.")
    max_grad_norm: float | None = Field(
        default=None, gt=0.0, description="Clip the global gradient norm; null: no clipping."
    )
    ema_decay: Rate = Field(
        default=0.9999, description="Decay of the averaged weights, min(decay, (1+n)/(10+n)) after n steps."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Autocast of the forward pass; the release trains in fp32. On a GPU, torch's own default lets fp32 "
        "convolutions use TF32, and matrix products not.",
    )
    report_images: int = Field(default=48_000, ge=1, description="Images between two progress reports.")
    checkpoint_images: int = Field(
        default=480_000, ge=1, description="Images between two checkpoints, each written at the first report after."
    )


class EvaluationConfig(Model):
    """Scores that a run computes of itself; `published` follows disentanglement_lib, `search` is its cheaper kin."""

    protocol: Literal["published", "search", "none"] = Field(
        default="search", description="Scoring at the end of a run."
    )
    estimator: Literal["reference", "hist", "tree"] | None = Field(
        default=None, description="DCI's classifier; null takes the protocol's own: `reference` or `hist`."
    )
    max_images: int = Field(default=10_000, ge=64, description="`search`: largest product sub-grid that is encoded.")
    seed: int = Field(default=0, ge=0, description="Seed of the metrics' draws; the same for every model compared.")
    rungs: tuple[Size, ...] = Field(
        default=(),
        description="Images seen, rising, after which the `search` protocol scores the averaged model while it trains: "
        "the run's learning curve. The end is scored by `protocol`.",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs={list(self.rungs)} must rise")
        if self.rungs and self.protocol == "none":
            raise ValueError("rungs are scored, but protocol=none scores nothing: remove one of them")
        return self
