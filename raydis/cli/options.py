"""The options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Number of sampling steps; default: the model's own.")]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="ddim, dpmpp_2m, dpmpp_2m_karras or unipc; default: unipc.")
]
KeepDetails = Annotated[
    bool,
    typer.Option("--keep-details", help="Start from the image's own noise (DDIM inversion) instead of a seed's."),
]
Storage = Annotated[
    str,
    typer.Option(
        envvar="RAYDIS_STORAGE", help="Folder or s3://bucket/prefix, not percent-encoded, for runs and the registry."
    ),
]
CheckpointName = Annotated[str, typer.Argument(help="Checkpoint folder, s3:// URI, or name@alias.")]
