"""The base class of the methods' configurations: checks, warnings and a default search space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from raydis.config.section import Model

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


REDUCTION = 16  # factor by which four convolutions reduce the image size


def check_reduction(run: RunConfig) -> None:
    """Raise ValueError if four convolutions, each of which halves an image, cannot reduce those of a run."""
    if run.data.image_size % REDUCTION:
        raise ValueError(
            f"data.image_size={run.data.image_size} must be a multiple of {REDUCTION} for method.kind={run.method.kind}"
        )


class Pretrained(Model):
    """A frozen model that a separate run has trained. Each subclass adds its `kind` and the settings of its network."""

    kind: str
    checkpoint: str | None = Field(
        default=None,
        description="Checkpoint of that run: a folder, an s3:// URI, or name@alias of the registry. It must have been "
        "trained with the same settings of the network and the first stage, at this image size, but may have seen "
        "other images. A run needs it; its own checkpoints contain the model.",
    )


class MethodSection(Model):
    """The configuration of one method. Each subclass adds the field `kind`, whose single value names the method.

    Attributes:
        scored: whether the method has units, so that its runs can be scored and ranked by a sweep.
        has_blocks: whether the method has a U-Net, whose blocks `compute.compile` can compile.
        uses_first_stage: whether the method works on the latent of a first stage.
        has_ica: whether the method's units are independent components already.
        cpu_only: whether the method trains on CPUs even if there is a GPU, so that Ray reserves none for it.
    """

    scored: ClassVar[bool] = True
    has_blocks: ClassVar[bool] = False
    uses_first_stage: ClassVar[bool] = False
    has_ica: ClassVar[bool] = False
    cpu_only: ClassVar[bool] = False

    @property
    def borrowed(self) -> Pretrained | None:
        """The setting `method.pretrained`, if the method is built on a model that a separate run has trained."""
        return None

    def check(self, run: RunConfig) -> None:
        """Raise ValueError if the method does not fit the other sections of the run."""

    def warnings(self, run: RunConfig) -> list[str]:
        """Return one sentence for each setting that has no effect because the run is too short."""
        return []

    def memory_bytes(self, run: RunConfig) -> int:
        """Return how much memory Ray reserves for a worker; 0 to reserve none, as for all that fits easily."""
        return 0

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        """Return the search space of a sweep that defines none in `search`: domains by dotted key of the run."""
        return {}
