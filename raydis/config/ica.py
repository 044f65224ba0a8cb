"""Configuration of the methods that find their units by independent component analysis (ICA) of learned codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raydis.config.vae import VaeSection

if TYPE_CHECKING:
    from raydis.config.run import RunConfig

# Memory of the fit for each landmark and square of its number of neighbours k, in bytes. A quadratic form has k^2
# triplets of 16 bytes for each landmark before it is merged. Its factors and work space took 27 to 47 bytes in all, for
# 2 to 5 factors and 4,000 to 16,000 landmarks.
FIT_BYTES = 16 + 32


class IcaSection(VaeSection):
    """The settings that these methods share: networks of the VAEs, and ICA."""

    has_ica: ClassVar[bool] = True

    max_iterations: int = Field(default=1000, ge=1, description="Most iterations of ICA.")
    tolerance: float = Field(default=1e-6, gt=0.0, description="Change of the rotation below which ICA stops.")


class AeIcaConfig(IcaSection):
    """An autoencoder whose codes are rotated by ICA after training."""

    kind: Literal["ae_ica"] = "ae_ica"

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.num_units": {"kind": "int", "low": 2, "high": 12},
            "train.learning_rate": {"kind": "float", "low": 3e-5, "high": 3e-3, "log": True},
        }


class IsoAeIcaConfig(IcaSection):
    """An autoencoder with an isometric decoder, whose codes are rotated by ICA after training."""

    kind: Literal["iso_ae_ica"] = "iso_ae_ica"
    isometry: Literal["relaxed", "decoder"] = Field(
        default="relaxed",
        description="Penalty of the decoder. `relaxed`: relaxed distortion (IRVAE), which leaves the scale free; "
        "`decoder`: the deviation of lengths from 1 (Isometric Autoencoders).",
    )
    isometry_weight: float = Field(default=1.0, ge=0.0, description="Weight of that penalty.")

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.num_units": {"kind": "int", "low": 2, "high": 12},
            "method.isometry_weight": {"kind": "float", "low": 0.01, "high": 100.0, "log": True},
        }


class HlleIcaConfig(IcaSection):
    """Hessian eigenmaps of a sample of the images, rotated by ICA and distilled into an encoder and a decoder."""

    cpu_only: ClassVar[bool] = True  # the fit runs on CPUs, and lasts longer than the distillation

    kind: Literal["hlle_ica"] = "hlle_ica"
    num_units: int = Field(
        default=3, ge=2, le=12, description="Latent units N: the number of factors, all of them continuous."
    )
    num_neighbors: int | None = Field(
        default=None,
        ge=6,
        description="Neighbours of an image, more than N (N + 3) / 2. Null: N (N + 3) + 8.",
    )
    fit_images: int = Field(default=4_000, ge=16, description="Images to which the eigenmaps are fitted: landmarks.")
    pca_dims: int = Field(
        default=30, ge=2, description="Principal components of the pixels, in which neighbours are sought."
    )

    @property
    def neighbors(self) -> int:
        """The number of neighbours, also if it is not set."""
        return self.num_neighbors or self.num_units * (self.num_units + 3) + 8

    @model_validator(mode="after")
    def _determined(self) -> Self:
        most = self.num_units * (self.num_units + 3) // 2
        if self.neighbors <= most:
            raise ValueError(
                f"num_neighbors={self.neighbors} must exceed N (N + 3) / 2 = {most} for num_units={self.num_units}: "
                "raise num_neighbors, leave it out, or lower num_units"
            )
        if self.pca_dims < self.num_units:
            raise ValueError(f"pca_dims={self.pca_dims} must be at least num_units={self.num_units}")
        if self.fit_images <= self.neighbors:
            raise ValueError(f"fit_images={self.fit_images} must exceed the number of neighbours, {self.neighbors}")
        return self

    def memory_bytes(self, run: RunConfig) -> int:
        """Return the memory that the fit takes: the images and their copy, the quadratic form and its factors."""
        pixels = 4 * 3 * run.data.image_size**2
        return self.fit_images * (2 * pixels + FIT_BYTES * self.neighbors**2)

    def default_search_space(self) -> dict[str, dict[str, Any]]:
        return {
            "method.num_units": {"kind": "int", "low": 2, "high": 6},
            "method.pca_dims": {"kind": "choice", "values": [15, 30, 60]},
        }
