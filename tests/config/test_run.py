from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raydis.config import RunConfig
from raydis.config.data import RENDERED_SETS
from raydis.config.dyga_sd import DiffusionConfig, DygaSdConfig


def test_the_defaults_are_a_valid_run() -> None:
    config = RunConfig()
    assert config.latent_size == 16
    assert config.data.name in RENDERED_SETS


def test_a_config_survives_json() -> None:
    method = {"unet": {"attention_sizes": [16], "skip_dropout_sizes": [64]}}
    tree = {"data": {"levels": {"scale": 4, "shape": [0, 2]}}, "first_stage": {"kind": "pixel"}, "method": method}
    config = RunConfig.model_validate(tree)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_method_without_a_kind_is_dyga_sd() -> None:
    config = RunConfig.model_validate({"method": {"num_units": 7}})
    assert isinstance(config.method, DygaSdConfig)
    assert (config.method.kind, config.method.num_units) == ("dyga_sd", 7)
    assert RunConfig.model_validate(config.model_dump()) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("stage", "size"),
    [
        ({"kind": "pixel"}, 64),
        ({"kind": "patch_pca", "patch_size": 8}, 8),
        ({"kind": "vq", "checkpoint": "x"}, 16),
        ({"kind": "kl", "checkpoint": "x", "stem_stride": 4, "multipliers": [1, 2]}, 8),
    ],
)
def test_the_first_stage_sets_the_size_of_the_latent(stage: dict[str, Any], size: int) -> None:
    sizes = {"attention_sizes": [size], "skip_dropout_sizes": [], "multipliers": [1, 2]}
    config = RunConfig.model_validate({"first_stage": stage, "method": {"unet": sizes}})
    assert config.latent_size == size


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"path": "x.h5"}}, r"shapes3d_procedural is rendered, not read: remove data\.path=x\.h5"),
        ({"data": {"name": "mpi3d"}}, r"data\.name=mpi3d is read from files: set data\.path"),
        (
            {"data": {"name": "image_folder", "path": "x", "levels": {"scale": 2}}},
            "image_folder has none: remove data.levels",
        ),
        ({"method": {"unet": {"model_dim": 60}}}, r"num_heads=8 must divide model_dim\*multiplier=60"),
        ({"method": {"anchors": {"num_gaussians": 40}}}, r"num_gaussians=40 must not exceed max_gaussians=32"),
        ({"first_stage": {"kind": "patch_pca", "patch_size": 3}}, r"first_stage\.patch_size=3 must divide .*=64"),
        ({"data": {"image_size": 48}}, "a latent of 12 px cannot be halved 3 times: give .* fewer levels"),
        (
            {"method": {"unet": {"attention_sizes": [16, 5]}}},
            r"attention_sizes has \[5\], but the U-Net's levels have sizes \[16, 8, 4, 2\] px",
        ),
        ({"method": {"unet": {"skip_dropout_sizes": [32]}}}, r"skip_dropout_sizes has \[32\], but"),
        (
            {
                "data": {"image_size": 24},
                "method": {"unet": {"multipliers": [1, 2], "attention_sizes": [], "skip_dropout_sizes": []}},
            },
            r"data\.image_size=24 cannot be divided by 16 in the encoder",
        ),
        ({"compute": {"num_workers": 2, "min_workers": 3}}, r"min_workers=3 must not exceed num_workers=2"),
        ({"compute": {"num_workers": 3}}, r"train\.batch_size=512 must be a multiple of compute\.num_workers=3"),
        ({"compute": {"compile": "graph", "device": "cpu"}}, r"compile=graph captures a CUDA graph, which device=cpu"),
        ({"compute": {"compile": "full", "device": "cpu"}}, r"compile=full captures a CUDA graph.*: use off or blocks"),
        (
            {"method": {"num_units": 16, "unit_dim": 1024, "anchors": {"max_gaussians": 32}}},
            r"num_units=16, anchors\.max_gaussians=32 and unit_dim=1024 make covariances of 2\.0 GiB, more than 1",
        ),
        ({"train": {"learning_rate": float("nan")}}, "finite number"),
        ({"first_stage": {"kind": "vq"}}, r"first_stage\.vq\.checkpoint\n  Field required"),
        (
            {"first_stage": {"kind": "kl", "checkpoint": "x", "multipliers": [1] * 8}},
            r"image_size=64 cannot be divided by 128: change first_stage\.stem_stride or give first_stage\.multipliers",
        ),
        (
            {"method": {"kind": "vq"}},
            r"kind=vq trains a first stage .*set first_stage\.kind=pixel instead of patch_pca",
        ),
        (
            {"method": {"kind": "kl"}, "first_stage": {"kind": "pixel"}},
            r"kind=kl has no units to score: set evaluation\.protocol=none instead of search",
        ),
        (
            {"method": {"kind": "vq", "stem_stride": 3}, "first_stage": {"kind": "pixel"}},
            r"image_size=64 cannot be divided by 12: change method\.stem_stride or give method\.multipliers",
        ),
        (
            {
                "data": {"image_size": 8},
                "method": {"kind": "vq", "perceptual_weights": "x"},
                "first_stage": {"kind": "pixel"},
                "evaluation": {"protocol": "none"},
            },
            r"data\.image_size=8 is too small: use at least 16 px, or remove method\.perceptual_weights",
        ),
        (
            {"method": {"kind": "vae"}},
            r"'vae' found using 'kind' does not match .*'dyga_sd', 'beta_vae', .*'vq', 'kl'",
        ),
        (
            {"method": {"kind": "beta_vae"}, "first_stage": {"kind": "vq", "checkpoint": "x"}},
            r"method\.kind=beta_vae works on the pixels themselves: remove first_stage\.kind=vq",
        ),
        (
            {"method": {"kind": "factor_vae"}, "data": {"image_size": 40}},
            r"data\.image_size=40 must be a multiple of 16 for method\.kind=factor_vae",
        ),
        (
            {"method": {"kind": "pca_ica"}, "compute": {"compile": "blocks"}},
            r"compile=blocks compiles the U-Net's blocks, and method\.kind=pca_ica has no U-Net: set",
        ),
        ({"method": {"unet": {"skip_dropout_rate": 1.0}}}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(tree)


def test_covariances_of_one_gibibyte_are_the_most() -> None:
    method = {"num_units": 8, "unit_dim": 1024, "anchors": {"max_gaussians": 32}}
    assert isinstance(RunConfig.model_validate({"method": method}).method, DygaSdConfig)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_first_stage_has_no_blocks_to_compile(kind: str) -> None:
    tree = {"first_stage": {"kind": "pixel"}, "method": {"kind": kind}, "evaluation": {"protocol": "none"}}
    for mode in ("blocks", "full"):
        with pytest.raises(ValidationError, match=rf"compile={mode} compiles .*kind={kind} has no U-Net: set"):
            RunConfig.model_validate({**tree, "compute": {"compile": mode}})
    assert RunConfig.model_validate({**tree, "compute": {"compile": "graph"}}).compute.compile == "graph"


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [({"rungs": [200, 100]}, "must rise"), ({"rungs": [100], "protocol": "none"}, "protocol=none scores nothing")],
)
def test_rungs_that_cannot_be_scored_are_refused(evaluation: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({"evaluation": evaluation})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"discriminator_channels": [8] * 7}, "halve an image of data.image_size=64 px too often"),
        ({"discriminator_start_images": 100}, "is not reached within train.num_images=100"),
    ],
)
def test_a_discriminator_that_cannot_play_is_refused(method: dict, message: str) -> None:
    tree = {
        "first_stage": {"kind": "pixel"},
        "method": {"kind": "vq", "discriminator_weight": 0.5, **method},
        "train": {"num_images": 100},
        "evaluation": {"protocol": "none"},
    }
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(tree)


def test_a_model_cannot_draw_in_more_steps_than_it_has_timesteps() -> None:
    assert DiffusionConfig(num_timesteps=5, default_steps=5).default_steps == 5
    with pytest.raises(ValueError, match=r"default_steps=6 must not exceed num_timesteps=5: lower it"):
        DiffusionConfig(num_timesteps=5, default_steps=6)
