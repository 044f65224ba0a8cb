"""The latents of all images behind a learned first stage, which are computed once.

B batch, L h w latent.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydis.data import Loader
from raydis.data.cache import cache_folder, cached_array
from raydis.data.dataset import digest
from raydis.data.loader import images_at_once, to_device
from raydis.models.autoencoders import Autoencoder

ENCODER = 1  # part of the cache's file name; increase it if equal weights and images would give other latents


class Latents:
    """Latents of a data set as float16, without the scale. They are kept on the GPU if they fit there.

    Args:
        array: (images, L, h, w) float16, in memory or memory-mapped.
        device: the device of the latents that the methods return.
        spare_bytes: largest size that is copied to a GPU; see `Loader.spare_bytes`.
    """

    def __init__(self, array: np.ndarray, device: torch.device, *, spare_bytes: int) -> None:
        self.device = device
        self._resident = device.type == "cpu" or array.nbytes <= spare_bytes
        self.array = torch.from_numpy(array).to(device) if self._resident else torch.from_numpy(array)

    def batch(self, loader: Loader, step: int) -> Tensor:
        """Return the latents of the loader's images of a step: float32 (B, L, h, w) on the device."""
        if self._resident:
            return self.array.index_select(0, loader.device_indices(step)).float()
        return self.gather(loader.indices(step))

    def gather(self, indices: np.ndarray) -> Tensor:
        """Return the latents of the images at indices (B,) int64, in this order: float32 (B, L, h, w) on the device."""
        rows = torch.from_numpy(indices)
        if self._resident:
            return self.array.index_select(0, to_device(rows, self.device)).float()
        return to_device(self.array.index_select(0, rows), self.device).float()


def open_latents(autoencoder: Autoencoder, loader: Loader, *, cache_dir: Path | None = None) -> Latents:
    """Return the latents of all images of the loader's data set, from the cache folder or by encoding the images.

    The name of the cache file contains the fingerprint of the images and a digest of the encoder's weights. It does not
    contain the device that encoded them, although the latents of a CPU and a GPU differ in the last bit.

    Raises:
        DataError: there is no room for the cache, or a file in it is damaged.
    """
    dataset = loader.dataset
    size = dataset.image_shape[0]
    side = size // autoencoder.reduction
    autoencoder.eval()

    def fill(out: np.ndarray) -> None:
        with torch.no_grad(), torch.autocast(loader.device.type, enabled=False):
            for start in range(0, len(dataset), images_at_once(size)):
                part = np.arange(start, min(start + images_at_once(size), len(dataset)))
                out[part] = autoencoder.raw(loader.gather(part)).half().cpu().numpy()

    name = digest(images=dataset.fingerprint, encoder=weights_digest(autoencoder), version=ENCODER)
    path = cache_folder(cache_dir) / f"{dataset.name}-{dataset.fingerprint[:16]}-latents-{name[:16]}.npy"
    return Latents(
        cached_array(path, (len(dataset), autoencoder.latent_dim, side, side), fill, dtype=np.float16),
        loader.device,
        spare_bytes=loader.spare_bytes,
    )


def weights_digest(autoencoder: Autoencoder) -> str:
    """Return the sha256 of the names, shapes and bytes of the encoder's weights, which determine the latents."""
    state = hashlib.sha256()
    for part in ("encoder", "to_latent"):
        for name, tensor in getattr(autoencoder, part).state_dict().items():
            state.update(digest(name=f"{part}.{name}", shape=list(tensor.shape)).encode())
            state.update(tensor.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
