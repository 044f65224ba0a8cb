"""Scores that papers report, to stand apart from ours: they are quoted, never ranked or tested against our runs.

The numbers are FactorVAE score and DCI disentanglement, mean and standard deviation, from Table 1 of EncDiff (NeurIPS
2024, arXiv 2402.09712), Table 2 of FDAE and Table 1 of DyGA+SD (arXiv 2410.23820). Rows of VAEs and GANs were copied
from paper to paper and not run again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quoted:
    """One row: a method's FactorVAE score and DCI disentanglement, each with its standard deviation over runs."""

    method: str
    factor_vae: tuple[float, float]
    dci: tuple[float, float]
    note: str = ""


GENERAL = (
    "The papers train for far more images, with other networks and on their own hardware; their metrics draw with one "
    "fixed seed, so that a deviation covers training only; which checkpoint was scored is not stated. Rows of VAEs and "
    "GANs were copied from paper to paper, and reruns of one baseline differ by a factor of two between two papers."
)
CAVEATS = {
    "cars3d": "In the public loaders of DisDiff and EncDiff, each image of Cars3D is repeated ten times while the "
    "labels are not, so that scores may belong to images and labels that do not fit. In a simulation, a perfect code "
    "then has a FactorVAE score of 0.51 and DCI 0.18. DyGA+SD's code reads aligned pairs, as ours does.",
    "mpi3d": "The MPI3D column mixes three data sets: rows of VAEs and GANs come from an early release with 460,800 "
    "images, DisDiff, EncDiff and DyGA+SD use the later one with 1,036,800 synthetic images, and FDAE uses "
    "photographs. Only the rows of DisDiff, EncDiff and DyGA+SD can be compared with each other.",
    "shapes3d_procedural": "The papers use the official images of 3D Shapes. Ours are a rendering of the same scene, "
    "here perhaps with fewer levels of each factor.",
}
SHAPES3D = (
    Quoted("FactorVAE", (0.840, 0.066), (0.611, 0.082)),
    Quoted("beta-TCVAE", (0.873, 0.074), (0.613, 0.114)),
    Quoted("InfoGAN-CR", (0.587, 0.058), (0.478, 0.055)),
    Quoted("DisCo (GAN)", (0.877, 0.031), (0.708, 0.048)),
    Quoted("VCT", (0.957, 0.043), (0.884, 0.013)),
    Quoted("DisDiff (VQ)", (0.902, 0.043), (0.723, 0.013)),
    Quoted("FDAE", (0.987, 0.023), (0.917, 0.038)),
    Quoted("EncDiff", (0.999, 0.000), (0.969, 0.030)),
    Quoted("DyGA+SD", (1.000, 0.000), (0.938, 0.001)),
)
CARS3D = (
    Quoted("FactorVAE", (0.906, 0.052), (0.161, 0.019)),
    Quoted("beta-TCVAE", (0.855, 0.082), (0.140, 0.019)),
    Quoted("InfoGAN-CR", (0.411, 0.013), (0.020, 0.011)),
    Quoted("DisCo (GAN)", (0.855, 0.074), (0.271, 0.037)),
    Quoted("VCT", (0.966, 0.029), (0.382, 0.080)),
    Quoted("DisDiff (VQ)", (0.976, 0.018), (0.232, 0.019)),
    Quoted("FDAE", (0.918, 0.027), (0.418, 0.036)),
    Quoted("EncDiff", (0.773, 0.060), (0.279, 0.022)),
    Quoted("DyGA+SD", (0.941, 0.002), (0.414, 0.013)),
)
MPI3D = (
    Quoted("FactorVAE", (0.152, 0.025), (0.240, 0.051), "early release"),
    Quoted("beta-TCVAE", (0.179, 0.017), (0.237, 0.056), "early release"),
    Quoted("InfoGAN-CR", (0.439, 0.061), (0.241, 0.075), "early release"),
    Quoted("DisCo (GAN)", (0.371, 0.030), (0.292, 0.024), "early release"),
    Quoted("VCT", (0.689, 0.035), (0.475, 0.005)),
    Quoted("DisDiff (VQ)", (0.617, 0.070), (0.337, 0.057), "later release"),
    Quoted("FDAE", (0.903, 0.030), (0.644, 0.031), "photographs"),
    Quoted("EncDiff", (0.872, 0.049), (0.685, 0.044), "later release"),
    Quoted("DyGA+SD", (0.930, 0.004), (0.627, 0.002), "later release"),
)
QUOTED = {"shapes3d": SHAPES3D, "shapes3d_procedural": SHAPES3D, "cars3d": CARS3D, "mpi3d": MPI3D}
