"""Configuration of C-S DisMo, whose units are the content and the style of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raydis.config.method import MethodSection, check_reduction
from raydis.config.section import Size

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class CsDismoConfig(MethodSection):
    """C-S DisMo (arXiv 2102.10544), reconstructed."""

    kind: Literal["cs_dismo"] = "cs_dismo"
    content_dim: int = Field(default=16, ge=2, le=256, description="Width of the content.")
    style_dim: int = Field(default=8, ge=1, le=256, description="Width of the style, which should be the narrower one.")
    variant: Literal["single", "multiple"] = Field(
        default="multiple",
        description="single: the style customises the content. multiple: it customises every layer of the generator.",
    )
    content_noise: float = Field(
        default=0.5, ge=0.0, description="Standard deviation of the noise on the content in training; contents have 1."
    )
    hidden_dim: int = Field(default=256, ge=1, description="Width of the dense layers of encoders and generator.")
    channels: tuple[Size, Size, Size] = Field(
        default=(64, 64, 32), description="Channels of the generator, each at twice the size of the one before."
    )

    def check(self, run: RunConfig) -> None:
        check_reduction(run)

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.content_dim": {"kind": "int", "low": 8, "high": 64, "log": True},
            "method.style_dim": {"kind": "int", "low": 2, "high": 16},
            "method.content_noise": {"kind": "float", "low": 0.0, "high": 1.0},
        }
