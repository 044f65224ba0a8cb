"""Hessian eigenmaps and independent component analysis (ICA), distilled into an encoder and a decoder.

M landmarks, B batch, N units, P = C H W values of an image, k neighbours.

If the images are the image of independent factors, of which at most one is Gaussian, under a locally isometric map,
then Hessian eigenmaps find the factors up to a linear map, and ICA finds this map up to order, signs and scales (Horan,
Richardson and Weiss, NeurIPS 2021). N is the number of factors, which all have to be continuous. Factors that are
periodic or categories, or that change the image by different amounts depending on the others, are outside of the
theory. The spectrum tells: after the N + 1 eigenvalues of the linear functions there must be a gap.

`start` solves for the factors of M images, the landmarks. Any other image gets the weighted mean of the factors of its
nearest landmarks, with the weights of locally linear embedding (Roweis and Saul, Science 2000), as in scikit-learn's
`transform`. An encoder learns to predict these numbers, and a decoder to draw the image from the encoder's output. The
paper's own number of neighbours and its deep variant could not be read, so these choices are ours.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.errors import FitError
from raydis.methods.contract import Batch, Diagnosis, FactorTable, Losses, Move, UnitLabel, UnitMethod
from raydis.methods.independence import describe_independence, gaussian_warning
from raydis.models.conv_vae import ConvDecoder, ConvEncoder
from raydis.models.hessian import Embedding, embed
from raydis.models.ica import find_rotation
from raydis.models.precision import at_least_single

LEAST_GAP = 2.0  # of the spectrum. It was 3 or more on data with that many factors, and 1.0 to 1.2 on other data.
RIDGE = 1e-3  # of the weights of the nearest landmarks, relative to the trace of their products; scikit-learn's

log = logging.getLogger(__name__)


class HlleIca(UnitMethod):
    """Fit the units of landmarks in closed form, and train an encoder and a decoder on them.

    Args:
        encoder: a network with one head of N numbers.
        decoder: a network from N numbers to pixels in [-1, 1].
        image_shape: (C, H, W).
        num_units: N, the number of factors.
        num_neighbors: k.
        fit_images: M, the largest number of landmarks.
        pca_dims: number of principal components of the pixels, in which distances are measured.
        max_iterations, tolerance: of ICA.
    """

    unit_dim = 1

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        image_shape: tuple[int, int, int],
        num_units: int,
        num_neighbors: int,
        fit_images: int,
        pca_dims: int,
        max_iterations: int = 1000,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        num_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.encoder = encoder
        self.decoder = decoder
        self.num_units = num_units
        self.num_neighbors = num_neighbors
        self.start_images = fit_images
        self.pca_dims = min(pca_dims, num_pixels)
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.register_buffer("mean", torch.zeros(num_pixels))
        self.register_buffer("axes", torch.zeros(self.pca_dims, num_pixels))
        self.register_buffer("landmarks", torch.zeros(fit_images, self.pca_dims))
        self.register_buffer("targets", torch.zeros(fit_images, num_units))
        self.register_buffer("eigenvalues", torch.zeros(num_units + 2))
        self.register_buffer("num_landmarks", torch.zeros((), dtype=torch.int64))  # the rows after these are empty
        self.register_buffer("num_components", torch.zeros((), dtype=torch.int64))
        self.register_quantiles(num_units)
        self.mean: Tensor
        self.axes: Tensor
        self.landmarks: Tensor
        self.targets: Tensor
        self.eigenvalues: Tensor
        self.num_landmarks: Tensor
        self.num_components: Tensor

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains both networks by Adam without weight decay."""
        return [Move("distil", [self.encoder, self.decoder], weight_decay=0.0)]

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Find the units of the landmarks, images in [-1, 1] of which equal ones count once.

        Raises:
            FitError: the images are too few, vary in too few directions or are not connected by their neighbours, or
                the eigenvectors or ICA do not converge.
        """
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        pixels = _distinct(torch.cat([images.flatten(1).cpu() for images in parts]).numpy())
        count = min(self.pca_dims, len(pixels) - 1)
        if count < self.num_units:
            raise FitError(
                f"{len(pixels)} different images cannot have num_units={self.num_units} factors: lower "
                "method.num_units, or take more images"
            )
        pca = PCA(count, svd_solver="randomized", random_state=seed)
        points = pca.fit_transform(pixels).astype(np.float64)
        embedding = embed(points, self.num_units, self.num_neighbors, np.random.default_rng(seed))
        rotation = find_rotation(
            embedding.coordinates, seed=seed, max_iterations=self.max_iterations, tolerance=self.tolerance
        )
        units = embedding.coordinates @ rotation.T
        for warning in (_spectrum_warning(embedding.gap), gaussian_warning(units)):
            if warning:
                log.warning("%s", warning)
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.axes.zero_()[:count] = torch.from_numpy(pca.components_)
        self._keep(points[embedding.kept], units, embedding)

    def _keep(self, points: NDArray[np.float64], units: NDArray[np.float64], embedding: Embedding) -> None:
        """Store landmarks (K, p), their units (K, N) and the spectrum."""
        self.landmarks.zero_()[: len(points), : points.shape[1]] = torch.from_numpy(points)
        self.targets.zero_()[: len(units)] = torch.from_numpy(units)
        self.eigenvalues.copy_(torch.from_numpy(embedding.eigenvalues))
        self.num_landmarks.fill_(len(units))
        self.num_components.fill_(embedding.num_components)

    @torch.no_grad()
    def spectral_units(self, images: Tensor) -> Tensor:
        """Return the units (B, N) of images (B, C, H, W) by their nearest landmarks, without the encoder."""
        with torch.autocast(images.device.type, enabled=False):
            points = (images.flatten(1).to(self.mean.dtype) - self.mean) @ self.axes.T
            empty = torch.arange(len(self.landmarks), device=points.device) >= self.num_landmarks
            distances = torch.cdist(points, self.landmarks).masked_fill(empty, torch.inf)
            nearest = distances.topk(self.num_neighbors, largest=False).indices  # (B, k)
            offsets = self.landmarks[nearest] - points[:, None]
            products = offsets @ offsets.mT
            # An image amid equal landmarks has offsets of zero, and takes their mean.
            ridge = (RIDGE * products.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(torch.finfo(points.dtype).tiny ** 0.5)
            products.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
            ones = torch.ones_like(products[:, :, :1])
            weights, _ = torch.linalg.solve_ex(products, ones)  # `solve` would wait for a GPU to report errors
            return (weights * self.targets[nearest]).sum(1) / weights.sum(1)

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the squared error of the encoder, and that of the decoder summed over an image.

        The decoder reads the encoder's output as a constant, so the encoder learns the spectral units alone.
        """
        images, targets = batch.images, self.spectral_units(batch.images)
        units = self.encoder(images)[0]
        drawn = self.decoder(units.detach())
        distillation = (units.to(targets.dtype) - targets).square().sum(1).mean()
        reconstruction = (drawn.to(images.dtype) - images).square().sum() / len(images)
        return {
            "loss": distillation + reconstruction,
            "distillation": distillation,
            "reconstruction": reconstruction,
        }

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the output (B, N) of the encoder for images (B, C, H, W) in [-1, 1]."""
        return at_least_single(self.encoder(images)[0])

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, N, 1) decode to."""
        return at_least_single(self.decoder(codes.squeeze(-1))).clamp(-1.0, 1.0)

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Describe the spectrum, the distributions of the units, and how well the encoder predicts the landmarks'."""
        pairs = [(self.units(images), self.spectral_units(images)) for images in parts]
        units, targets = (torch.cat(each).cpu().double().numpy() for each in zip(*pairs, strict=True))
        residual = ((units - targets) ** 2).mean(0)
        explained = 1.0 - residual / np.maximum(targets.var(0), np.finfo(float).tiny)
        eigenvalues = self.eigenvalues.double().cpu().numpy()
        gap = float(eigenvalues[-1] / max(eigenvalues[-2], np.finfo(float).tiny))
        note = (
            f"{int(self.num_landmarks)} landmarks were fitted; their neighbourhood graph had "
            f"{int(self.num_components)} components. The eigenvalues of the {self.num_units} coordinates are "
            f"{', '.join(f'{value:.2g}' for value in eigenvalues[1:-1])}, and the next one is {eigenvalues[-1]:.2g}: "
            f"{gap:.3g} times the last of them. {_spectrum_warning(gap)} Distilled is the share of the variance of the "
            "landmarks' units that the encoder predicts."
        )
        details = {
            "eigenvalues": eigenvalues.tolist(),
            "gap": gap,
            "num_landmarks": int(self.num_landmarks),
            "num_components": int(self.num_components),
        }
        return describe_independence(
            units, title="Spectrum and independence", columns={"distilled": explained}, note=note, details=details
        )


def _spectrum_warning(gap: float) -> str:
    """Return a sentence if the spectrum has no gap; else an empty text."""
    if gap >= LEAST_GAP:
        return ""
    return (
        f"The spectrum has no gap after the coordinates (a ratio of {gap:.2g}, expected at least {LEAST_GAP:g}): the "
        "data are not a locally isometric image of num_units continuous factors, and units need not be factors."
    )


def _distinct(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the rows (M, P) without repetitions, in their order. Equal images would be each other's neighbours."""
    first = {hashlib.sha256(row.tobytes()).digest(): index for index, row in reversed(list(enumerate(pixels)))}
    return pixels[sorted(first.values())]
