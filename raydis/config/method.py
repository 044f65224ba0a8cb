"""What the configuration of every method answers for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from raydis.config.section import Model

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class MethodSection(Model):
    """The configuration of one method. Each adds `kind`, a literal of its own, by which the methods are told apart.

    Attributes:
        scored: whether it has units, so that a run of it can be scored and a sweep can rank it.
        has_blocks: whether it has a U-Net, whose blocks `compute.compile` can compile.
        uses_first_stage: whether it works on the latent of a first stage.
    """

    scored: ClassVar[bool] = True
    has_blocks: ClassVar[bool] = False
    uses_first_stage: ClassVar[bool] = False

    def check(self, run: RunConfig) -> None:
        """Raise ValueError where the method cannot work with the rest of the run."""

    def warnings(self, run: RunConfig) -> list[str]:
        """Return what the run is configured for but too short to reach, a sentence each."""
        return []

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        """Return the domains that a sweep without a `search` of its own searches, by dotted key of the run."""
        return {}
