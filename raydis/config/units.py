"""Configuration of what is done with the units of a trained method, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raydis.config.section import Model

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class UnitsConfig(Model):
    """How the units of the method become those that are scored, edited and served."""

    rotation: Literal["none", "ica"] = Field(
        default="none",
        description="`ica`: the units of the trained method are rotated to independent components by ICA. Training "
        "itself stays the same.",
    )

    def check(self, run: RunConfig) -> None:
        """Raise ValueError if the method has no units to rotate, or rotates them itself."""
        if self.rotation == "none":
            return
        if not run.method.scored:
            raise ValueError(
                f"units.rotation={self.rotation} rotates units, and method.kind={run.method.kind} has none: set "
                "units.rotation=none"
            )
        if run.method.has_ica:
            raise ValueError(
                f"units.rotation={self.rotation} has no effect on method.kind={run.method.kind}, whose units are "
                "independent components already: set units.rotation=none"
            )
