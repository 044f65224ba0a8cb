"""The version of raydis."""

__version__ = "0.1.0"
