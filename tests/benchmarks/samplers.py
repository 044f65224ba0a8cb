"""Error and time of the samplers against steps, and of edits that keep details.

    python -m tests.benchmarks.samplers [CHECKPOINT] [--quick] [--num-images 16]

First on data whose score is exact, ten Gaussians in 16 dimensions: the distance from DDIM's 1000 steps, as a share of
the data's standard deviation. Then on a trained checkpoint: PSNR in dB (median over images) of what few steps draw to
what DDIM's 1000 steps draw from the same codes and noise; rounding to 8 bits is an error of 59 dB. Then the same
images drawn with their details and without, against the images themselves; no picture can come nearer to them than the
first stage does. Times are CPU-seconds of one thread in alternating rounds.

Without a CHECKPOINT the small preset is trained on 12,000 images first (about a CPU-minute). `--quick` trains on 3,000,
draws 6 images and compares with 250 steps: less than 2 minutes in all.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.data.pixels import normalise
from raydis.diffusion.samplers import SAMPLERS, sample
from raydis.diffusion.schedule import alpha_bars
from raydis.editor.editor import Editor
from raydis.engine.fit import fit
from raydis.engine.state import Training
from raydis.methods.dyga_sd import DygaSd

SEED = 0
STEPS = (5, 10, 20, 50)
ROUNDS = 5
TIMED_STEPS, TIMED_IMAGES = 10, 4  # a batch of the service on a CPU
MODES, DIMENSIONS, SPREAD = 10, 16, 0.3


def exact_score_errors(num_points: int = 2048) -> list[dict]:
    """RMS distance from DDIM's 1000 steps by sampler and steps; a point that lands in another mode counts in full."""
    generator = torch.Generator().manual_seed(SEED)
    levels = torch.tensor(alpha_bars("ldm_linear"))
    means = torch.randn(MODES, DIMENSIONS, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_points, DIMENSIONS, 1, 1, generator=generator, dtype=torch.float64)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        """E[z_0 | z_t] in closed form."""
        ab = levels[t[0]]
        spread = ab * SPREAD**2 + 1.0 - ab
        offsets = z.flatten(1)[:, None] - ab.sqrt() * means
        weights = (-offsets.square().sum(2) / (2.0 * spread)).softmax(1)
        return (weights[:, :, None] * (means + ab.sqrt() * SPREAD**2 / spread * offsets)).sum(1).view_as(z)

    limit = sample("ddim", predict, noise, levels, 1000)
    rows = []
    for steps in STEPS:
        for sampler in SAMPLERS:
            distance = sample(sampler, predict, noise, levels, steps) - limit
            error = (distance.square().mean().sqrt() / limit.std()).item()
            rows.append({"part": "exact score", "steps": steps, "sampler": sampler, "error": round(error, 3)})
    return rows


def trained(num_images: int) -> tuple[DygaSd, FactorDataset]:
    """The small preset after a short training."""
    tree = {"preset": "small", "train": {"num_images": num_images}, "compute": {"device": "cpu"}, "seed": SEED}
    config = RunConfig.model_validate(expand(tree))
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    for _ in fit(training):
        pass
    method = training.calibrated()
    assert isinstance(method, DygaSd)
    return method.requires_grad_(False), training.dataset


def psnr(drawn: Tensor, wanted: Tensor) -> float:
    """Median over images (B, C, H, W) in [-1, 1], dB."""
    errors = (drawn - wanted).square().mean((1, 2, 3)).clamp_min(1e-12)
    return round((10.0 * (4.0 / errors).log10()).median().item(), 2)


def picture_errors(method: DygaSd, images: Tensor, limit_steps: int) -> list[dict]:
    """PSNR of few steps' pictures to those of many, and to the images, by sampler and steps."""
    codes = method.encode(images)
    noise = torch.randn(len(images), *method.noise_shape, generator=torch.Generator().manual_seed(SEED))
    limit = method.decode(codes, noise, limit_steps, "ddim")
    rows = []
    for steps in STEPS:
        for sampler in SAMPLERS:
            drawn = method.decode(codes, noise, steps, sampler)
            scores = {"to_limit_db": psnr(drawn, limit), "to_image_db": psnr(drawn, images)}
            rows.append({"part": "checkpoint", "steps": steps, "sampler": sampler, **scores})
    return rows


def detail_errors(method: DygaSd, images: Tensor) -> list[dict]:
    """PSNR to the images of what DDIM draws of them from a seed's noise and from their own, by steps."""
    codes = method.encode(images)
    noise = torch.randn(len(images), *method.noise_shape, generator=torch.Generator().manual_seed(SEED))
    first_stage = psnr(method.first_stage.decode(method.first_stage.encode(images)).clamp(-1.0, 1.0), images)
    rows = []
    for steps in STEPS:
        own = method.invert(codes, images, steps)
        drawn, kept = (method.decode(codes, start, steps, "ddim") for start in (noise, own))
        scores = {"seed_db": psnr(drawn, images), "kept_db": psnr(kept, images), "first_stage_db": first_stage}
        rows.append({"part": "keep_details", "steps": steps, **scores})
    return rows


def times(method: DygaSd, images: Tensor) -> list[dict]:
    """CPU-milliseconds an image and step by sampler, and of an inversion, with ratios to ddim in the same round."""
    images = images[:TIMED_IMAGES]
    codes = method.encode(images)
    noise = torch.zeros(len(images), *method.noise_shape)
    calls = {name: lambda name=name: method.decode(codes, noise, TIMED_STEPS, name) for name in SAMPLERS}
    calls["inversion"] = lambda: method.invert(codes, images, TIMED_STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_index:
                seconds[name].append(time.process_time() - start)
    return [
        {
            "part": "time",
            "call": name,
            "ms_an_image_and_step": round(1e3 * statistics.median(found) / TIMED_STEPS / len(images), 2),
            "ratio": round(
                statistics.median(mine / ddim for mine, ddim in zip(found, seconds["ddim"], strict=True)), 2
            ),
        }
        for name, found in seconds.items()
    ]


def print_rows(rows: list[dict]) -> None:
    names = [name for name in rows[0] if name != "part"]
    print(f"\n{rows[0]['part']}\n" + " ".join(f"{name:>20}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]:>20}" for name in names), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="folder or s3:// URI; default: train one")
    parser.add_argument("--quick", action="store_true", help="less training, fewer images, a nearer limit")
    parser.add_argument("--num-images", type=int, help="images drawn: 16, with --quick 6")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, 1 thread"
    print(f"torch {torch.__version__}, {machine}, seed {SEED}")
    rows = exact_score_errors()
    print_rows(rows)
    if options.checkpoint:
        editor = Editor.open(fetch_checkpoint(options.checkpoint, default_cache()))
        method, dataset = editor.method, open_dataset(editor.config.data)
    else:
        method, dataset = trained(3_000 if options.quick else 12_000)
    chosen = np.random.default_rng(SEED).choice(len(dataset), options.num_images or (6 if options.quick else 16), False)
    images = normalise(torch.from_numpy(dataset.images(chosen)))
    for part in (
        picture_errors(method, images, 250 if options.quick else 1000),
        detail_errors(method, images),
        times(method, images),
    ):
        print_rows(part)
        rows += part
    print(json.dumps({"benchmark": "samplers", "torch": torch.__version__, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
