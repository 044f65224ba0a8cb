"""raydis trains, searches and serves disentangled diffusion models on Ray."""

__version__ = "0.1.0"
