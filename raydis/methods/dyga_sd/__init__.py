"""DyGA+SD (Dynamic Gaussian Anchoring and Skip Dropout, arXiv 2410.23820), and a diagnosis of its anchors."""

from __future__ import annotations

from raydis.methods.dyga_sd.method import DygaSd

__all__ = ["DygaSd"]
