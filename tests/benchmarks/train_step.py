"""Time of a training step: raydis against the same network and recipe written the plain way.

    python -m tests.benchmarks.train_step [--device cpu|cuda] [--preset small|reference|both] [--steps N]

Plain is `tests.benchmarks.plain` with what its kind of code usually has around it: a DataLoader that normalises image
by image, AdamW and clipping by torch's defaults, the averaging of weights tensor by tensor, and `loss.item()` every
step. Both have the same sizes, images, first stage and arithmetic; anchors are not fitted yet, as in the first part of
a run. On a GPU, plain's four workers hand over bytes and the device normalises them, which is in plain's favour: floats
of 512 images would not fit the 64 MB of shared memory that a container usually has. Its epoch never ends, for workers
that start anew would make it wait. On a GPU ours comes with every `compute.compile`, in channels_last and
with TF32 too.

On a CPU rounds of the variants alternate (ABAB), in CPU-seconds of one thread. On a GPU a variant has all its rounds
before the next is built, so that only one's memory is held, in seconds between synchronisations.
On a CPU the reference preset runs with batches of 4 instead of 512, so that updating its 61 million weights counts for
more than in a real run.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data.dataset import ArrayDataset
from raydis.diffusion.schedule import alpha_bars
from raydis.engine.breakdown import seconds
from raydis.engine.fit import fit
from raydis.engine.state import Training
from tests.benchmarks.plain import PlainUNet, copy_unet, plain_encoder

SEED = 0
NUM_IMAGES = 2048
CPU_REFERENCE_BATCH_SIZE = 4  # instead of 512: a step then takes about a second


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    precision: str = "fp32"
    compile: str = "off"
    plain: bool = False
    channels_last: bool = False
    tf32: bool = False  # of matrix products; convolutions use it by torch's own default


VARIANTS = {
    "cpu": (Variant("plain fp32", plain=True), Variant("raydis fp32")),
    "cuda": (  # in order of worth: a limit of time cuts the end
        Variant("plain fp32", plain=True),
        Variant("plain bf16", "bf16", plain=True),
        Variant("raydis bf16", "bf16"),
        Variant("raydis bf16 graph", "bf16", "graph"),
        Variant("raydis bf16 blocks", "bf16", "blocks"),
        Variant("raydis bf16 full", "bf16", "full"),
        Variant("raydis bf16 graph channels_last", "bf16", "graph", channels_last=True),
        Variant("raydis fp32", "fp32"),
        Variant("raydis fp32 graph", "fp32", "graph"),
        Variant("raydis fp32 graph tf32", "fp32", "graph", tf32=True),
        Variant("raydis bf16 full channels_last", "bf16", "full", channels_last=True),
    ),
}


def make_config(
    preset: str,
    device: str,
    steps: int,
    *,
    precision: str = "fp32",
    compile: str = "off",
    channels_last: bool = False,
    batch_size: int | None = None,
) -> RunConfig:
    """A preset that reports every `steps` steps and neither saves nor fits anchors."""
    if batch_size is None:
        batch_size = RunConfig.model_validate(expand({"preset": preset})).train.batch_size
        if (preset, device) == ("reference", "cpu"):
            batch_size = CPU_REFERENCE_BATCH_SIZE
    far = batch_size * 10**6
    train = {
        "batch_size": batch_size,
        "num_images": far,
        "checkpoint_images": far,
        "report_images": batch_size * steps,
        "precision": precision,
    }
    tree = expand(
        {
            "preset": preset,
            "train": train,
            "method": {"anchors": {"refit_images": far}},
            "compute": {"device": device, "compile": compile, "channels_last": channels_last},
            "seed": SEED,
        }
    )
    return RunConfig.model_validate(tree)


def make_dataset(image_size: int) -> ArrayDataset:
    """Random uint8 pictures: their content does not matter to the clock."""
    array = np.random.default_rng(SEED).integers(0, 256, (NUM_IMAGES, image_size, image_size, 3), dtype=np.uint8)
    return ArrayDataset("noise", array, None, fingerprint="benchmark")


class ImageRows(torch.utils.data.Dataset):
    """Images one by one, each normalised on its own, or left as bytes for a device to do it."""

    def __init__(self, array: np.ndarray, *, as_bytes: bool = False) -> None:
        self.array = array
        self.as_bytes = as_bytes

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(self.array[index]).permute(2, 0, 1)
        return image if self.as_bytes else image.float() / 127.5 - 1.0


def endless_loader(
    rows: torch.utils.data.Dataset, batch_size: int, device: torch.device
) -> torch.utils.data.DataLoader:
    """Shuffled batches without an epoch's end, at which workers would start anew; on a GPU four workers read ahead."""
    sampler = torch.utils.data.RandomSampler(rows, replacement=True, num_samples=10**9)
    workers = {"num_workers": 4, "prefetch_factor": 1, "pin_memory": True} if device.type == "cuda" else {}
    return torch.utils.data.DataLoader(rows, batch_size, sampler=sampler, drop_last=True, **workers)


class PlainAverage:
    """Moving average of weights, a tensor at a time by name."""

    def __init__(self, networks: nn.ModuleDict, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.shadow = {name: weight.detach().clone() for name, weight in networks.named_parameters()}

    @torch.no_grad()
    def update(self, networks: nn.ModuleDict) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, weight in networks.named_parameters():
            self.shadow[name].sub_((1.0 - decay) * (self.shadow[name] - weight))


def plain_steps(training: Training) -> Iterator[float]:
    """Endless plain training steps from the weights of `training`; yields each loss."""
    config, device = training.config, training.device
    method, train = config.method, config.train
    stage = copy.deepcopy(training.method.first_stage)
    unet = PlainUNet(
        latent_dim=stage.latent_dim,
        latent_size=config.latent_size,
        unit_dim=method.unit_dim,
        **method.unet.model_dump(),
    ).to(device)
    copy_unet(unet, training.method.unet)
    networks = nn.ModuleDict({"encoder": plain_encoder(training.method.encoder).to(device), "unet": unet}).train()
    average = PlainAverage(networks, train.ema_decay)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
    levels = torch.tensor(alpha_bars(method.diffusion.schedule, method.diffusion.num_timesteps)).float().to(device)
    on_gpu = device.type == "cuda"
    loader = endless_loader(ImageRows(training.dataset.array, as_bytes=on_gpu), train.batch_size, device)
    while True:
        for batch in loader:
            images = batch.to(device, non_blocking=True)
            if on_gpu:
                images = images.float() / 127.5 - 1.0
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
                latents = stage.encode(images)
                timesteps = torch.randint(0, len(levels), (len(images),), device=device)
                noise = torch.randn_like(latents)
                level = levels[timesteps][:, None, None, None]
                noisy = level.sqrt() * latents + (1.0 - level).sqrt() * noise
                predicted = networks["unet"](noisy, timesteps, networks["encoder"](images))
                loss = (predicted - noise).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            if train.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(networks.parameters(), train.max_grad_norm)
            optimizer.step()
            average.update(networks)
            yield loss.item()


def start(variant: Variant, config: RunConfig, steps: int) -> Callable[[], object]:
    """A call that trains the next `steps` steps of a fresh run."""
    training = Training(config, make_dataset(config.data.image_size), device=torch.device(config.compute.device))
    steps_of = plain_steps(training) if variant.plain else fit(training)

    def call() -> None:
        torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
        for _ in range(steps if variant.plain else 1):  # ours reports once in `steps`
            next(steps_of)

    return call


def release_memory() -> None:
    """Give back what a variant held on the GPU: a run refers to itself, so that it waits for the collector."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def config_of(variant: Variant, preset: str, device: str, steps: int, batch_size: int | None = None) -> RunConfig:
    """The configuration that trains as a variant says."""
    return make_config(
        preset,
        device,
        steps,
        precision=variant.precision,
        compile=variant.compile,
        channels_last=variant.channels_last,
        batch_size=batch_size,
    )


def variants(preset: str, device: str, steps: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """What to time, by name: each builds a run, of which a call trains `steps` steps."""
    return {
        variant.name: functools.partial(start, variant, config_of(variant, preset, device, steps), steps)
        for variant in VARIANTS[device]
    }


def measure(
    builders: dict[str, Callable[[], Callable[[], object]]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each call, after one that is not counted: on a CPU in alternating rounds, on a GPU one by one."""
    where = torch.device(device)
    if device == "cuda":
        taken = {}
        for name, build in builders.items():
            call = build()
            taken[name] = [seconds(call, where) for _ in range(rounds + 1)][1:]
            del call
            release_memory()
        return taken
    calls = {name: build() for name, build in builders.items()}
    taken = {name: [] for name in calls}
    for round_index in range(rounds + 1):
        for name, call in calls.items():
            elapsed = seconds(call, where)
            if round_index:
                taken[name].append(elapsed)
    return taken


def report(preset: str, steps: int, num_images: int, taken: dict[str, list[float]]) -> list[dict]:
    """Print one row a variant and return the rows; ratios are of the same round's plain fp32 call to it."""
    rows = []
    for name, times in taken.items():
        ratios = [slow / fast for slow, fast in zip(taken["plain fp32"], times, strict=True)]
        rows.append(
            {
                "preset": preset,
                "variant": name,
                "batch_size": num_images // steps,
                "images_per_s": round(num_images / statistics.median(times), 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            }
        )
        row = rows[-1]
        print(
            f"{preset:10} {name:32} {row['batch_size']:6} {row['images_per_s']:10} {row['ratio']:7.2f} "
            f"{row['ratio_range'][0]:7.2f} - {row['ratio_range'][1]:.2f}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("small", "reference", "both"), default="both")
    parser.add_argument("--steps", type=int, help="steps a round: 4 (small) and 1 (reference) on a CPU, 20 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, 1 thread"
    unit = "s" if options.device == "cuda" else "CPU-s"
    print(f"torch {torch.__version__}, {machine}, seed {SEED}, median of {options.rounds} rounds")
    print(f"{'preset':10} {'variant':32} {'batch':>6} {'img/' + unit:>10} {'ratio':>7} {'lowest - highest':>16}")
    rows = []
    for preset in ("small", "reference") if options.preset == "both" else (options.preset,):
        steps = options.steps or (20 if options.device == "cuda" else {"small": 4, "reference": 1}[preset])
        num_images = make_config(preset, options.device, steps).train.report_images
        taken = measure(variants(preset, options.device, steps), options.rounds, options.device)
        rows += report(preset, steps, num_images, taken)
    print(json.dumps({"benchmark": "train_step", "torch": torch.__version__, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
