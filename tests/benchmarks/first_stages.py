"""First stages compared: what survives them, what they cost to train, and what DyGA+SD learns behind them.

    python -m tests.benchmarks.first_stages [--images 12000] [--stage-images 20000] [--seeds 0] [--stages pixel vq ...]

All work on the 1,536 images of the preset `small` and give latents of 8 x 8 px, but for `pixel`: behind it the same
U-Net sees 64 x 64 px, with attention at the sizes where the others have it (8 and 4 px), and so five levels. `vq` and
`kl` are the presets `vq_small` and `kl_small`, trained once by the same loop. Each is followed by a diffusion run of
equally many images a seed, scored by the `search` protocol. Costs are CPU-seconds of one thread; the seconds a thousand
images of a diffusion run include the first stage where it is not cached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydis.config import RunConfig
from raydis.config.files import merge
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.engine.session import Report, run_session
from raydis.engine.state import Training
from raydis.methods.dyga_sd import DygaSd
from raydis.metrics.reconstruction import psnr

STAGES = ("patch_pca", "vq", "kl", "pixel")
PIXEL_UNET = {"multipliers": [1, 1, 1, 1, 1], "attention_sizes": [8, 4], "skip_dropout_sizes": [8]}
PSNR_IMAGES = 1024
LOSSLESS_DB = 100.0  # what is lost beyond is rounding


def run(tree: dict[str, Any], dataset: FactorDataset, folder: Path) -> tuple[Training, Report, float]:
    """Train one configuration: the training, its last report, and the CPU-seconds of all but the scoring."""
    training = Training(RunConfig.model_validate(expand(tree)), dataset, device=torch.device("cpu"))
    started, spent = time.process_time(), 0.0
    report = None
    for report in run_session(training, folder):
        if not report.progress.finished:
            spent = (time.process_time() - started) / report.progress.images_seen
    assert report is not None
    return training, report, spent * report.progress.images_seen


def survives(method: DygaSd, training: Training) -> float:
    """Mean PSNR of images that went through a diffusion run's first stage, dB."""
    images = training.loader.gather(np.arange(min(PSNR_IMAGES, len(training.dataset))))
    drawn = method.first_stage.decode(method.first_stage.encode(images)).clamp(-1.0, 1.0)
    return float(psnr(images.numpy(), drawn.numpy(), peak=2.0).mean())


def first_stage(kind: str, num_images: int, dataset: FactorDataset, folder: Path) -> tuple[dict[str, Any], float]:
    """The sections that put a diffusion run behind a first stage, and the CPU-seconds that training it took."""
    if kind == "patch_pca":
        return {}, 0.0
    if kind == "pixel":
        return {"first_stage": {"kind": "pixel"}, "method": {"unet": PIXEL_UNET}}, 0.0
    budget = {"num_images": num_images, "report_images": max(num_images // 10, 1), "checkpoint_images": num_images}
    tree = {"preset": f"{kind}_small", "train": budget}
    training, report, seconds = run(tree, dataset, folder)
    method = training.config.method.model_dump()
    sizes = ("stem_stride", "model_dim", "multipliers", "num_blocks", "latent_dim", "num_embeddings")
    stage = {name: method[name] for name in sizes if name in method}
    print(f"{kind}: {report.reconstruction} after {num_images} images, {seconds:.0f} CPU-s", flush=True)
    return {"first_stage": {"kind": kind, "checkpoint": str(report.checkpoint), **stage}}, seconds


def compare(kind: str, arguments: argparse.Namespace, dataset: FactorDataset, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    sections, cost = first_stage(kind, arguments.stage_images, dataset, folder)
    images, rows = arguments.pixel_images if kind == "pixel" else arguments.images, []
    for seed in arguments.seeds:
        budget = {"num_images": images, "report_images": max(images // 10, 1), "checkpoint_images": images}
        tree = merge({"preset": "small", "seed": seed, "train": budget}, sections)
        training, report, seconds = run(tree, dataset, folder)
        method = training.average
        assert isinstance(method, DygaSd)
        assert report.scores is not None
        scores = report.scores.values
        rows.append((scores.get("dci_disentanglement"), scores.get("factor_vae"), 1000 * seconds / images))
        decibels = survives(method, training)
        print(f"{kind} seed {seed}: {decibels:.2f} dB, DCI {rows[-1][0]}, FactorVAE {rows[-1][1]}", flush=True)
    dci, factor_vae, speed = (list(column) for column in zip(*rows, strict=True))
    return {
        "first_stage": kind,
        "psnr_db": round(decibels, 2) if decibels < LOSSLESS_DB else None,
        "training_cpu_s": round(cost),
        "cpu_s_per_1000_images": round(min(speed), 2),
        "images": images,
        "dci_disentanglement": dci,
        "factor_vae": factor_vae,
    }


def average(scores: list[float | None]) -> str:
    """Mean over the seeds, or that one of them has no score: too short a run has codes that have collapsed."""
    valid = [score for score in scores if score is not None]
    return f"{np.mean(valid):.3f}" if len(valid) == len(scores) else "invalid"


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=12_000, help="of a diffusion run")
    parser.add_argument("--pixel-images", type=int, default=None, help="of the one on pixels; default: as many")
    parser.add_argument("--stage-images", type=int, default=20_000, help="that a learned first stage is trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    arguments = parser.parse_args()
    arguments.pixel_images = arguments.pixel_images or arguments.images
    torch.set_num_threads(1)
    dataset = open_dataset(RunConfig.model_validate(expand({"preset": "small"})).data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAYDIS_CACHE"] = f"{folder}/cache"
        for kind in arguments.stages:
            rows.append(compare(kind, arguments, dataset, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    print("\nfirst stage   PSNR, dB  CPU-s  CPU-s/1000  images     DCI  FactorVAE")
    for row in rows:
        decibels = "lossless" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
        dci, factor_vae = (average(row[name]) for name in ("dci_disentanglement", "factor_vae"))
        print(
            f"{row['first_stage']:12} {decibels:>9} {row['training_cpu_s']:6d} {row['cpu_s_per_1000_images']:11.2f} "
            f"{row['images']:7d} {dci:>7} {factor_vae:>10}"
        )
    print(json.dumps({"rows": rows, "seeds": arguments.seeds, "torch": torch.__version__, "cpu": platform.processor()}))


if __name__ == "__main__":
    main()
