"""The data set Sprites: walking characters of the Liberated Pixel Cup, composed from sheets of their parts.

The sheets are those of github.com/YingzhenLi/Sprites (Li and Mandt, Disentangled Sequential Autoencoder, arXiv
1803.02991). Each shows a body or a garment in 13 x 21 cells of 64 x 64 px. A cell is a frame of an action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raydis.data.cache import fingerprint_files
from raydis.data.decode import DAMAGED
from raydis.data.folder import FileKind, name_all, shown
from raydis.data.source import Source, numbered
from raydis.data.space import FactorSpace
from raydis.errors import DataError

SPRITES = FactorSpace(("body", "bottomwear", "topwear", "hair", "direction", "frame"), (6, 6, 6, 6, 3, 8))
ORIGIN = "a clone of github.com/YingzhenLi/Sprites at commit 3ce4048 (CC-BY-SA 3.0 or GPL 3.0)"

CELL_PX, CELLS_ACROSS, CELLS_DOWN = 64, 13, 21
WALKS = ((131, 138), (118, 125), (144, 151))  # first and last cell, row by row, of walks to front, left and right
DRESSED = [[f"{part}/{number}.png" for number in range(6)] for part in ("body", "bottomwear", "topwear", "hair")]
SHOES = "shoes/1.png"  # the same for all characters
SHEETS = (*(name for part in DRESSED for name in part), SHOES)
SHEET_FILES = FileKind("sheets", SHEETS.__contains__)


def read_sprite_sheets(folder: Path) -> Source:
    """Compose the walks of all characters from the 25 sheets in a folder.

    A character consists of body, bottomwear, topwear, hair and shoes, laid over black in this order. Frame 0 of a walk
    is the last cell of its row, as in the scripts of the source.

    Raises:
        DataError: sheets that are missing, damaged or of another size. The message names all of them.
    """
    files = {name: folder / name for name in SHEETS}
    broken = {name: problem for name, path in files.items() if (problem := _problem(path))}
    if broken:
        raise DataError(
            f"sprites: {len(broken)} of the {len(SHEETS)} sheets in {shown(folder)} cannot be used: "
            f"{name_all(broken)}: set data.path to {ORIGIN}"
        )

    def blocks() -> Iterator[np.ndarray]:
        walks = {name: _walk_cells(path) for name, path in files.items()}
        canvas = Image.new("RGBA", walks[SHOES].size, (0, 0, 0, 255))
        layers = [[walks[name] for name in part] for part in (*DRESSED, [SHOES])]
        for character in _dressed(canvas, layers):
            yield np.asarray(character)[..., :3].reshape(-1, CELL_PX, CELL_PX, 3)

    shape = (len(SPRITES), CELL_PX, CELL_PX, 3)
    return Source("sprites", shape, SPRITES, fingerprint_files(files), lambda: numbered(blocks()))


def _problem(path: Path) -> str:
    """Return why a sheet cannot be used, as the end of a sentence "SHEET ..."; empty if it can be used."""
    expected = (CELLS_ACROSS * CELL_PX, CELLS_DOWN * CELL_PX)
    try:
        with Image.open(path) as sheet:
            if sheet.size != expected:
                return f"is {sheet.width} x {sheet.height} px, expected {expected[0]} x {expected[1]}"
            sheet.load()
    except FileNotFoundError:
        return "is missing"
    except (*DAMAGED, Image.DecompressionBombError) as error:
        return f"is damaged ({' '.join(str(error).split())})"
    return ""


def _walk_cells(path: Path) -> Image.Image:
    """Return the 24 frames of walking of a sheet, RGBA, below each other: direction by direction, frame by frame."""
    with Image.open(path) as sheet:
        cells = sheet.convert("RGBA")
    order = [cell for first, last in WALKS for cell in (last, *range(first, last))]
    strip = Image.new("RGBA", (CELL_PX, CELL_PX * len(order)))
    for position, cell in enumerate(order):
        left, top = cell % CELLS_ACROSS * CELL_PX, cell // CELLS_ACROSS * CELL_PX
        strip.paste(cells.crop((left, top, left + CELL_PX, top + CELL_PX)), (0, position * CELL_PX))
    return strip


def _dressed(character: Image.Image, layers: Sequence[Sequence[Image.Image]]) -> Iterator[Image.Image]:
    """Yield the character with every combination of one image of each layer. The last layer varies fastest."""
    if not layers:
        yield character
        return
    for worn in layers[0]:
        yield from _dressed(Image.alpha_composite(character, worn), layers[1:])
