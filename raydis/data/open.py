"""Open the data set that a configuration names, by calling its renderer or its reader."""

from __future__ import annotations

from pathlib import Path

from raydis.config import DataConfig
from raydis.data.cache import cache_folder, fetch, fetch_folder, is_stored
from raydis.data.dataset import FactorDataset
from raydis.data.dsprites import render_dsprites
from raydis.data.folder import FileKind
from raydis.data.shapes3d import render_shapes3d
from raydis.data.smooth import render_arcs, render_blobs
from raydis.data.source import Source, load
from raydis.errors import DataError
from raydis.store import Location


def open_dataset(config: DataConfig, *, cache_dir: Path | None = None) -> FactorDataset:
    """Open the data set that a configuration names.

    Args:
        config: the configuration; `path` may be local or an s3:// URI.
        cache_dir: folder for downloads and for arrays that do not fit in RAM. None stands for $RAYDIS_CACHE, else
            ~/.cache/raydis.

    Raises:
        DataError: a missing or damaged file, levels that the grid does not have, or no room for the cache.
        StoreError: a request to S3 failed.
    """
    cache = cache_folder(cache_dir)
    match config.name:
        case "shapes3d_procedural":
            return render_shapes3d(config.levels, config.image_size, cache_dir=cache)
        case "dsprites_procedural":
            return render_dsprites(config.levels, config.image_size, cache_dir=cache)
        case "arcs":
            return render_arcs(config.levels, config.image_size, cache_dir=cache)
        case "blobs":
            return render_blobs(config.levels, config.image_size, cache_dir=cache)
        case _:
            source = _source(config, cache)
            return load(source, image_size=config.image_size, levels=config.levels, cache_dir=cache)


def _source(config: DataConfig, cache: Path) -> Source:
    # Rendered sets need neither h5py nor Pillow.
    from raydis.data.celeba import ADVICE, CELEBA, read_celeba
    from raydis.data.files import CARS, read_cars3d, read_dsprites, read_mpi3d, read_shapes3d, read_sprites
    from raydis.data.pictures import PICTURES, read_image_folder
    from raydis.data.sprites import ORIGIN, SHEET_FILES, read_sprite_sheets

    match config.name:
        case "shapes3d":
            return read_shapes3d(_local_file(config, cache))
        case "dsprites":
            return read_dsprites(_local_file(config, cache))
        case "mpi3d":
            return read_mpi3d(_local_file(config, cache))
        case "sprites" if _is_file(config):
            return read_sprites(_local_file(config, cache))
        case "sprites":
            return read_sprite_sheets(_local_folder(config, cache, SHEET_FILES, f"download {ORIGIN}"))
        case "cars3d":
            return read_cars3d(_local_folder(config, cache, CARS), config.image_size)
        case "celeba":
            return read_celeba(_local_folder(config, cache, CELEBA, ADVICE), config.image_size)
        case "image_folder":
            return read_image_folder(_local_folder(config, cache, PICTURES), config.image_size)
        case name:
            raise DataError(f"data.name={name} has no reader")


def _is_file(config: DataConfig) -> bool:
    uri = config.path or ""
    path = Location.parse(uri).folder
    return is_stored(uri) if path is None else path.is_file()


def _local_file(config: DataConfig, cache: Path) -> Path:
    """Return the local path of the configured file, and download it first if it is in S3."""
    uri = config.path or ""
    path = Location.parse(uri).folder
    if path is None:
        return fetch(uri, cache)
    if path.is_dir():
        raise DataError(f"{config.name}: {path} is a folder: set data.path to the official file itself")
    if not path.is_file():
        raise DataError(f"{config.name}: no file {path}: correct data.path, or download the official file")
    return path


def _local_folder(
    config: DataConfig, cache: Path, kind: FileKind, advice: str = "download the official folder"
) -> Path:
    """Return the local path of the configured folder. If it is in S3, download its files of this kind first."""
    uri = config.path or ""
    path = Location.parse(uri).folder
    if path is None:
        return fetch_folder(uri, cache, kind)
    if path.is_file():
        raise DataError(f"{config.name}: {path} is a file: set data.path to the folder of the {kind.what}")
    if not path.is_dir():
        what = "file or folder" if config.name == "sprites" else "folder"
        raise DataError(f"{config.name}: no {what} {path}: correct data.path, or {advice}")
    return path
