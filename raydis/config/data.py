"""Configuration of the data set: its name, its files, the image size, and the part of its factor grid to use."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raydis.config.section import Model

WITHOUT_GRID = ("celeba", "image_folder")
RENDERED_SETS = ("shapes3d_procedural", "dsprites_procedural", "arcs", "blobs")


class DataConfig(Model):
    """The data set, and the part of its factor grid to use."""

    name: Literal[
        "shapes3d_procedural",
        "dsprites_procedural",
        "arcs",
        "blobs",
        "shapes3d",
        "dsprites",
        "mpi3d",
        "cars3d",
        "sprites",
        "celeba",
        "image_folder",
    ] = Field(
        default="shapes3d_procedural",
        description="Data set. `*_procedural`, `arcs` and `blobs` are rendered, the others are read from files.",
    )
    path: str | None = Field(
        default=None,
        description="File or folder of a data set that is read from files, as a local path or s3:// URI. For sprites: "
        "a clone of github.com/YingzhenLi/Sprites at commit 3ce4048 (CC-BY-SA 3.0 or GPL 3.0), or an .npz file of its "
        "walk animations. For celeba: a folder with `list_attr_celeba.txt` and the unpacked `img_align_celeba.zip`.",
    )
    image_size: int = Field(default=64, ge=8, le=512, description="Height and width of the images, px.")
    levels: dict[str, int | tuple[int, ...]] = Field(
        default_factory=dict,
        description="Sub-grid: the levels to keep, by factor name. A count n keeps level floor(i*K/n) of K for each "
        "i < n; a list keeps the levels that it names.",
    )

    @model_validator(mode="after")
    def _path(self) -> Self:
        if self.name in RENDERED_SETS and self.path is not None:
            raise ValueError(f"data.name={self.name} is rendered, not read: remove data.path={self.path}")
        if self.name not in RENDERED_SETS and self.path is None:
            raise ValueError(f"data.name={self.name} is read from files: set data.path to a local path or s3:// URI")
        if self.name in WITHOUT_GRID and self.levels:
            raise ValueError(f"data.levels needs a grid of factors, but {self.name} has none: remove data.levels")
        return self
