"""Configuration -> data set: the one place where a set's name meets its reader or renderer."""

from __future__ import annotations

from pathlib import Path

from raydis.config import DataConfig
from raydis.data.cache import cache_folder, fetch, fetch_folder
from raydis.data.dataset import FactorDataset
from raydis.data.dsprites import render_dsprites
from raydis.data.shapes3d import render_shapes3d
from raydis.data.source import Source, load
from raydis.errors import DataError
from raydis.store import Location

FOLDERS = ("cars3d", "image_folder")


def open_dataset(config: DataConfig, *, cache_dir: Path | None = None) -> FactorDataset:
    """The data set that a configuration names, ready to be indexed.

    Args:
        config: validated; `path` may be local or an s3:// URI.
        cache_dir: for downloads and for arrays that do not fit RAM; None: $RAYDIS_CACHE, else ~/.cache/raydis.

    Raises:
        DataError: a missing or damaged file, levels that the grid does not have, or no room for the cache.
        StoreError: S3 refused.
    """
    cache = cache_folder(cache_dir)
    match config.name:
        case "shapes3d_procedural":
            return render_shapes3d(config.levels, config.image_size, cache_dir=cache)
        case "dsprites_procedural":
            return render_dsprites(config.levels, config.image_size, cache_dir=cache)
        case _:
            source = _source(config, _local_path(config, cache))
            return load(source, image_size=config.image_size, levels=config.levels, cache_dir=cache)


def _source(config: DataConfig, path: Path) -> Source:
    # Rendered sets need neither h5py nor Pillow.
    from raydis.data.files import read_cars3d, read_dsprites, read_mpi3d, read_shapes3d, read_sprites
    from raydis.data.pictures import read_image_folder

    match config.name:
        case "shapes3d":
            return read_shapes3d(path)
        case "dsprites":
            return read_dsprites(path)
        case "mpi3d":
            return read_mpi3d(path)
        case "sprites":
            return read_sprites(path)
        case "cars3d":
            return read_cars3d(path, config.image_size)
        case "image_folder":
            return read_image_folder(path, config.image_size)
        case name:
            raise DataError(f"data.name={name} has no reader")


def _local_path(config: DataConfig, cache: Path) -> Path:
    """The configured file or folder on this machine, fetched where it is in S3."""
    uri, is_folder = config.path or "", config.name in FOLDERS
    path = Location.parse(uri).folder
    if path is None:
        return fetch_folder(uri, cache) if is_folder else fetch(uri, cache)
    if not (path.is_dir() if is_folder else path.is_file()):
        kind = "folder" if is_folder else "file"
        raise DataError(f"{config.name}: no {kind} {path}: correct data.path, or download the official {kind}")
    return path
