"""Time of our U-Net against diffusers' UNet2DConditionModel of equal widths: forward, and forward with backward.

    python -m tests.benchmarks.unet [--device cpu|cuda] [--batch-size 2] [--rounds 5]

Both have the reference preset's widths, blocks, heads and attention sizes, scale and shift by time, the same latents
and the same tokens. diffusers resamples with a convolution where latent-diffusion has a residual block, so parameters
and operations differ a little: both are printed. Each call projects the tokens anew, as a training step does; a
sampling run of ours would do it once. Rounds alternate (ABAB); CPU-seconds of one thread, on CUDA seconds between
synchronisations.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.engine.breakdown import seconds

SEED = 0
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_unets(preset: str, device: torch.device) -> tuple[dict[str, tuple[nn.Module, Call]], RunConfig]:
    """Both networks, in training mode without dropout, and how to call them.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    from diffusers import UNet2DConditionModel

    tree = {"preset": preset, "method": {"unet": {"dropout_rate": 0.0, "skip_dropout_rate": 0.0}}}
    config = RunConfig.model_validate(expand(tree))
    method, sizes = config.method, [config.latent_size >> i for i in range(len(config.method.unet.multipliers))]
    attends = [size in method.unet.attention_sizes for size in sizes]
    torch.manual_seed(SEED)
    unet = build_method(config, 3).unet.to(device).train()
    latent_dim = unet.conv_in.in_channels
    theirs = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=latent_dim,
        out_channels=latent_dim,
        block_out_channels=tuple(method.unet.model_dim * multiplier for multiplier in method.unet.multipliers),
        layers_per_block=method.unet.num_blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        cross_attention_dim=method.unit_dim,
        attention_head_dim=method.unet.num_heads,  # by which diffusers means their number
        norm_num_groups=min(32, method.unet.model_dim // 2),
        resnet_time_scale_shift="scale_shift",
    )
    theirs = theirs.to(device).train()
    return {
        "raydis": (unet, lambda z, t, tokens: unet(z, t, unet.condition(tokens))),
        "diffusers": (theirs, lambda z, t, tokens: theirs(z, t, tokens).sample),
    }, config


def make_inputs(config: RunConfig, latent_dim: int, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Latents, times and tokens."""
    generator = torch.Generator().manual_seed(SEED)
    size = config.latent_size
    latents = torch.randn(batch_size, latent_dim, size, size, generator=generator)
    times = torch.randint(1000, (batch_size,), generator=generator)
    tokens = torch.randn(batch_size, config.method.num_units, config.method.unit_dim, generator=generator)
    return tuple(tensor.to(device) for tensor in (latents, times, tokens))


def compare(preset: str, device: torch.device, batch_size: int, rounds: int, repeats: int, precision: str) -> Iterator:
    """Rows of both networks for each pass, as dictionaries."""
    networks, config = make_unets(preset, device)
    inputs = make_inputs(config, networks["raydis"][0].conv_in.in_channels, batch_size, device)
    counts = {}
    for name, (network, call) in networks.items():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            call(*inputs)
        counts[name] = (sum(weight.numel() for weight in network.parameters()), counter.get_total_flops() // batch_size)

    def forward(call: Call) -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            call(*inputs)

    def both(call: Call) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = call(*inputs).float().square().mean()
        loss.backward()

    for label, work in (("forward", forward), ("forward and backward", both)):
        times: dict[str, list[float]] = {name: [] for name in networks}
        for number in range(rounds + 1):
            for name, (_, call) in networks.items():
                taken = seconds(lambda work=work, call=call: [work(call) for _ in range(repeats)], device) / repeats
                if number:
                    times[name].append(taken)
        ratios = [a / b for a, b in zip(times["diffusers"], times["raydis"], strict=True)]
        for name in networks:
            yield {
                "pass": label,
                "network": name,
                "batch_size": batch_size,
                "precision": precision,
                "num_parameters": counts[name][0],
                "forward_gflop_an_image": round(counts[name][1] / 1e9, 3),
                "ms": round(1e3 * statistics.median(times[name]), 3),
                "diffusers_over_raydis": round(statistics.median(ratios), 2),
                "range": [round(min(ratios), 2), round(max(ratios), 2)],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("small", "reference"), default="reference")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="calls a round")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rows = []
    print(f"{options.device}, torch {torch.__version__}, seed {SEED}, median of {options.rounds} rounds")
    print(f"{'pass':22}{'network':12}{'batch':>6}{'parameters':>12}{'GFLOP/image':>13}{'ms':>10}{'ratio':>7}  range")
    for row in compare(options.preset, device, options.batch_size, options.rounds, options.repeats, options.precision):
        rows.append(row)
        print(
            f"{row['pass']:22}{row['network']:12}{row['batch_size']:6}{row['num_parameters']:12,}"
            f"{row['forward_gflop_an_image']:13}{row['ms']:10}{row['diffusers_over_raydis']:7}  {row['range']}",
            flush=True,
        )
    print(json.dumps({"benchmark": "unet", "torch": torch.__version__, "device": options.device, "rows": rows}))


if __name__ == "__main__":
    main()
