"""DyGA+SD (arXiv 2410.23820): the method, and what its anchors do."""

from __future__ import annotations

from raydis.methods.dyga_sd.method import DygaSd

__all__ = ["DygaSd"]
