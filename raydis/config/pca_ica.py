"""Configuration of principal component analysis (PCA) followed by independent component analysis (ICA)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from raydis.config.method import MethodSection


class PcaIcaConfig(MethodSection):
    """Principal components of the pixels, rotated by ICA and fitted once to at most `train.num_images` images."""

    has_ica: ClassVar[bool] = True

    kind: Literal["pca_ica"] = "pca_ica"
    num_units: int = Field(default=10, ge=2, le=256, description="Latent units N: the principal components kept.")
    fit_images: int = Field(default=10_000, ge=16, description="Images to which the components are fitted.")
    max_iterations: int = Field(default=1000, ge=1, description="Most iterations of ICA.")
    tolerance: float = Field(default=1e-4, gt=0.0, description="Change of the rotation below which ICA stops.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {"method.num_units": {"kind": "int", "low": 6, "high": 20}}
