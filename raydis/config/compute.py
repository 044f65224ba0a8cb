"""Configuration of where a run computes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raydis.config.section import Model


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
