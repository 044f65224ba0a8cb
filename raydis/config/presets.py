"""Named starting points for a run: plain trees that a YAML or the command line overrides key by key.

`reference` is the published system's size (arXiv 2410.23820): the defaults of `raydis.config`, a tenth of the
published budget among them, in bf16 where the release is fp32. `small` is what a laptop CPU trains in minutes;
`tiny` exists for tests and smoke runs and learns nothing. `vq` and `kl` train the learned first stages at the published
size, `vq_small` and `kl_small` in minutes on a laptop CPU for the images of `small`. `beta_vae_small`,
`factor_vae_small` and `pca_ica_small` train the other methods on the same images, in a minute or two on one core.
"""

from __future__ import annotations

import copy
from typing import Any

from raydis.config.files import merge
from raydis.errors import ConfigError

Tree = dict[str, Any]

REFERENCE: Tree = {
    "data": {"name": "shapes3d_procedural", "image_size": 64},
    "first_stage": {"kind": "patch_pca", "patch_size": 4, "latent_dim": 12},
    "method": {"kind": "dyga_sd"},
    "train": {"precision": "bf16"},  # the release trains in fp32
    # EncDiff's published curve on 3D Shapes (FactorVAE / DCI by images): 0.48 M 0.77/0.53, 0.96 M 0.97/0.73,
    # 1.92 M 1.00/0.93, 3.36 M 1.00/0.95. Half of what there is to know is known after a tenth of the budget.
    "evaluation": {"rungs": [480_000, 960_000, 1_920_000]},
}

SMALL: Tree = {
    "data": {
        "name": "shapes3d_procedural",
        "image_size": 64,
        "levels": {"floor_hue": 4, "wall_hue": 4, "object_hue": 4, "scale": [0, 7], "orientation": [0, 7, 14]},
    },
    "first_stage": {"kind": "patch_pca", "patch_size": 8, "latent_dim": 24},
    "method": {
        "kind": "dyga_sd",
        "num_units": 12,
        "unit_dim": 16,
        "encoder": {
            "stem_stride": 8,
            "channels": [64, 128],
            "hidden_dims": [128],
            "norm": "group",
            "token_hidden_dims": [64, 64],
        },
        "unet": {
            "model_dim": 32,
            "multipliers": [1, 1],
            "num_blocks": 1,
            "attention_sizes": [8, 4],
            "num_heads": 1,
            "dropout_rate": 0.0,
            "skip_dropout_rate": 0.2,
            "skip_dropout_sizes": [8],
        },
        "diffusion": {"prediction": "sample"},
        "anchors": {"num_gaussians": 6, "max_gaussians": 16, "fit_samples": 1_500, "refit_images": 5_000},
    },
    "train": {
        "num_images": 30_000,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "learning_rate_schedule": "cosine",
        "warmup_images": 3_200,
        "max_grad_norm": 1.0,
        "ema_decay": 0.995,
        "report_images": 3_000,
        "checkpoint_images": 15_000,
    },
    "evaluation": {"protocol": "search"},
}

TINY: Tree = {
    "data": {
        "name": "shapes3d_procedural",
        "image_size": 16,
        "levels": {"floor_hue": 3, "wall_hue": 3, "object_hue": 3, "scale": 2, "shape": 2, "orientation": 3},
    },
    "first_stage": {"kind": "patch_pca", "patch_size": 4, "latent_dim": 6},
    "method": {
        "kind": "dyga_sd",
        "num_units": 4,
        "unit_dim": 8,
        "encoder": {
            "stem_stride": 4,
            "channels": [16, 32],
            "hidden_dims": [32],
            "norm": "group",
            "token_hidden_dims": [16],
        },
        "unet": {
            "model_dim": 16,
            "multipliers": [1, 2],
            "num_blocks": 1,
            "attention_sizes": [2],
            "num_heads": 2,
            "dropout_rate": 0.0,
            "skip_dropout_rate": 0.1,
            "skip_dropout_sizes": [4],
        },
        "anchors": {"num_gaussians": 2, "max_gaussians": 4, "fit_samples": 200, "refit_images": 128},
    },
    "train": {
        "num_images": 512,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "report_images": 128,
        "checkpoint_images": 256,
    },
    "evaluation": {"protocol": "search", "estimator": "tree"},
}

VQ: Tree = {
    "data": REFERENCE["data"],
    "first_stage": {"kind": "pixel"},
    "method": {"kind": "vq"},
    "train": {
        "batch_size": 256,
        "learning_rate": 4.5e-4,
        "weight_decay": 0.0,
        "ema_decay": 0.999,
        "max_grad_norm": 1.0,
        "warmup_images": 48_000,
    },
    "evaluation": {"protocol": "none"},
}

VQ_SMALL: Tree = {
    "data": SMALL["data"],
    "first_stage": {"kind": "pixel"},
    "method": {
        "kind": "vq",
        "stem_stride": 4,
        "model_dim": 32,
        "multipliers": [1, 2],
        "num_blocks": 1,
        "latent_dim": 4,
    },
    "train": {
        "num_images": 30_000,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "learning_rate_schedule": "cosine",
        "warmup_images": 1_600,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "ema_decay": 0.995,
        "report_images": 3_000,
        "checkpoint_images": 15_000,
    },
    "evaluation": {"protocol": "none"},
}

# disentanglement_lib takes 300,000 steps at a rate of 1e-4, with which a thousand steps learn hardly more than the mean
# image. It was chosen by reconstruction: beta-VAE (beta = 1) after 5,000 images in batches of 64 is at 7.9 dB with
# 1e-4, 8.4 with 5e-4 and 9.0 with 1e-3, and batches of 32 take more steps.
BETA_VAE_SMALL: Tree = {
    "data": SMALL["data"],
    "first_stage": {"kind": "pixel"},
    "method": {"kind": "beta_vae", "beta": 4.0},
    "train": {
        "num_images": 30_000,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "ema_decay": 0.995,
        "report_images": 3_000,
        "checkpoint_images": 15_000,
    },
    "evaluation": {"protocol": "search"},
}

PRESETS: dict[str, Tree] = {
    "reference": REFERENCE,
    "small": SMALL,
    "tiny": TINY,
    "vq": VQ,
    "kl": {**VQ, "method": {"kind": "kl"}},
    "vq_small": VQ_SMALL,
    "kl_small": {**VQ_SMALL, "method": {**VQ_SMALL["method"], "kind": "kl", "latent_dim": 8}},
    "beta_vae_small": BETA_VAE_SMALL,
    "factor_vae_small": {
        **BETA_VAE_SMALL,
        "method": {"kind": "factor_vae", "gamma": 10.0, "discriminator_dims": [256, 256, 256]},
    },
    # FastICA can turn for ever. With scikit-learn's tolerance of 1e-4 it does in 5 of 48 fits (6 to 20 units, three
    # seeds, images of `tiny` and `small`); with 5e-3 in 1 of 144 (6 to 20 units, twelve seeds).
    "pca_ica_small": {**BETA_VAE_SMALL, "method": {"kind": "pca_ica", "tolerance": 5e-3}},
}


def expand(tree: Tree) -> Tree:
    """Replace a `preset: NAME` entry by that preset, overridden by the other entries of `tree`.

    A section that chooses another variant (another data.name, first_stage.kind or method.kind) starts from that
    variant's defaults instead of mixing two.

    Raises:
        ConfigError: no such preset.
    """
    if "preset" not in tree:
        return copy.deepcopy(tree)
    name = tree["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    base = copy.deepcopy(PRESETS[name])
    over = {key: value for key, value in tree.items() if key != "preset"}
    for section, variant in (("data", "name"), ("first_stage", "kind"), ("method", "kind")):
        wanted = over.get(section)
        chosen = wanted.get(variant) if isinstance(wanted, dict) else None
        if chosen is not None and chosen != base[section].get(variant):
            base[section] = {"image_size": base["data"]["image_size"]} if section == "data" else {}
    return merge(base, over)
