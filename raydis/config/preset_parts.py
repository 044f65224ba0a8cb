"""What several presets share: the data, and the course of a short training."""

from __future__ import annotations

from typing import TypedDict

from raydis.config.data import DataConfig
from raydis.config.dyga_sd import DiffusionConfig


class _Course(TypedDict):
    num_images: int
    ema_decay: float
    report_images: int
    checkpoint_images: int


FULL_DATA = DataConfig(name="shapes3d_procedural", image_size=64)
SMALL_DATA = DataConfig(
    name="shapes3d_procedural",
    image_size=64,
    levels={"floor_hue": 4, "wall_hue": 4, "object_hue": 4, "scale": (0, 7), "orientation": (0, 7, 14)},
)
# Scale and orientation have more levels than in SMALL_DATA, so that two factors fold into one unit less easily. Four
# neighbouring hues lie on an arc, which one unit can describe; equally spaced hues lie on a circle, which takes two.
ARC_HUES = (0, 1, 2, 3)
MEDIUM_DATA = DataConfig(
    name="shapes3d_procedural",
    image_size=64,
    levels={
        "floor_hue": ARC_HUES,
        "wall_hue": ARC_HUES,
        "object_hue": ARC_HUES,
        "scale": (0, 2, 5, 7),
        "orientation": (0, 4, 7, 10, 14),
    },
)
FLOW = DiffusionConfig(schedule="straight", prediction="velocity", loss="l2", shift=6.0, default_steps=1)
SMALL_COURSE: _Course = {
    "num_images": 30_000,
    "ema_decay": 0.995,
    "report_images": 3_000,
    "checkpoint_images": 15_000,
}
