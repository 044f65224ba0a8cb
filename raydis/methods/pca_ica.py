"""Principal components of the pixels, rotated by independent component analysis (ICA): a linear baseline.

M images, B batch, N units, P = C H W values of an image.

The images are projected on their first N principal components (PCA). ICA then rotates the whitened projections so
that they are as far from Gaussian as possible. The fit needs no gradients. Over its images, the value of a unit has
mean 0 and variance 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.errors import FitError
from raydis.methods.contract import Move, UnitMethod
from raydis.models.ica import find_rotation


class PcaIca(UnitMethod):
    """A linear map from pixels to units, and its pseudo-inverse.

    Args:
        image_shape: (C, H, W).
        num_units: N.
        fit_images: M, the number of images for the fit.
        max_iterations: most iterations of ICA.
        tolerance: change of ICA's components below which it has converged.
    """

    unit_dim = 1

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_units: int,
        fit_images: int,
        max_iterations: int = 1000,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.num_units = num_units
        self.start_images = fit_images
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        num_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.register_buffer("mean", torch.zeros(num_pixels))
        self.register_buffer("unmixing", torch.zeros(num_units, num_pixels))
        self.register_buffer("mixing", torch.zeros(num_pixels, num_units))
        self.register_quantiles(num_units)
        self.mean: Tensor
        self.unmixing: Tensor
        self.mixing: Tensor

    @property
    def moves(self) -> Sequence[Move]:
        """No moves: `start` is the whole training."""
        return []

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit the map and its pseudo-inverse to images in [-1, 1].

        Raises:
            FitError: there are fewer images or pixels than units, the images vary in fewer directions, or ICA does
                not converge.
        """
        pixels = torch.cat([images.flatten(1).cpu() for images in parts]).numpy()  # (M, P)
        if min(pixels.shape) < self.num_units:
            raise FitError(
                f"{len(pixels)} images of {pixels.shape[1]} values cannot give num_units={self.num_units} components: "
                "lower method.num_units, or take more images"
            )
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        pca = PCA(self.num_units, whiten=True, svd_solver="randomized", random_state=seed)
        whitened = pca.fit_transform(pixels)
        deviations = torch.from_numpy(pca.explained_variance_).sqrt()  # (N,), falling
        # Rounding errors give the others a deviation as well, which whitening would scale up to that of the first.
        varying = int((deviations > 10 * torch.finfo(deviations.dtype).eps * deviations[0]).sum())
        if varying < self.num_units:
            raise FitError(
                f"{len(pixels)} images vary in {varying} directions, fewer than num_units={self.num_units}: lower "
                "method.num_units, or take more or other images"
            )
        found = find_rotation(whitened, seed=seed, max_iterations=self.max_iterations, tolerance=self.tolerance)
        axes = torch.from_numpy(pca.components_)  # (N, P), orthonormal
        rotation = torch.from_numpy(found)  # (N, N), orthogonal
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.unmixing.copy_(rotation @ (axes / deviations[:, None]))
        self.mixing.copy_((axes.T * deviations) @ torch.linalg.inv(rotation))

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the components (B, N) of images (B, C, H, W) in [-1, 1]."""
        return (images.flatten(1) - self.mean) @ self.unmixing.T

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, N, 1) decode to."""
        pixels = codes.squeeze(-1) @ self.mixing.T + self.mean
        return pixels.view(-1, *self.image_shape).clamp(-1.0, 1.0)
