"""Configuration of the hardware that a run uses, and of how it uses it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raydis.config.section import Model


class ComputeConfig(Model):
    """The hardware of a run. It is not part of the run's identity, so a run may continue on other hardware.

    Batch size, learning rate, data order, timesteps and noise do not depend on the number of workers that share a
    batch, nor on the parts in which a worker processes its share. The result therefore stays the same up to rounding,
    with two exceptions: each worker draws its own dropout, and a batch norm takes its statistics over the images that
    all workers process at once. Either changes the numbers slightly, as another seed would. With `anchors.mode:
    release` there is a third exception, because its formula uses the images of one worker's part only.
    """

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto`: a GPU if the machine has one.")
    num_workers: int = Field(
        default=1, ge=1, description="Data-parallel workers. Each takes an equal share of every batch."
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="Fewest workers with which the run continues if the cluster has no room for all, e.g. after losing "
        "a node; each then takes a larger share. Null: `num_workers`, so that the run waits.",
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Most images that a worker processes at once, to save memory. A larger share is split into equal "
        "parts whose gradients are accumulated. Null: no limit.",
    )
    num_cpus: float = Field(default=1, gt=0, description="CPUs per worker.")
    num_gpus: float = Field(
        default=0, ge=0, description="GPUs per worker. With a fraction, several workers share a GPU."
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory that Ray reserves for a worker, in bytes; 0: none, but for methods that ask for it. Ray "
        "only counts what is reserved and does not enforce it.",
    )
    compile: Literal["off", "blocks", "graph", "full"] = Field(
        default="off",
        description="How a training step is accelerated. `graph`: it is captured once as a CUDA graph and replayed; "
        "`blocks`: torch.compile compiles the blocks of the U-Net, which takes a while at the start; `full`: both. "
        "`graph` and `full` require a single worker on a GPU. They have not been tested on a GPU yet, so the default "
        "is `off`.",
    )
    channels_last: bool = Field(
        default=False,
        description="Store weights and feature maps of the trained networks with the channels innermost, which can "
        "make convolutions faster on a GPU. This has not been measured on a GPU yet, so the default is false. Dropout "
        "draws other masks with it.",
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
                f"compile={self.compile} captures a CUDA graph, which device=cpu does not support: use off or blocks"
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} must not exceed num_workers={self.num_workers}")
        return self
