from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from torch import nn

from raydis.build import build_method
from raydis.config import PixelStage, RunConfig
from raydis.config.files import parse
from raydis.config.identity import settings
from raydis.config.presets import PRESETS, expand
from raydis.errors import ConfigError
from raydis.methods.disdiff import Disdiff
from raydis.methods.dyga_sd import DygaSd
from raydis.models.autoencoders import VqAutoencoder


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_run(name: str) -> None:
    parse(RunConfig, expand({"preset": name}), source=name)


NAMES = {  # the ends of the names of runs that were trained before presets were typed, or since
    "reference": "0993116c5660",
    "small": "2e6a0776fea5",
    "flow_small": "8e89d1650d2b",
    "tiny": "16754110b162",
    "vq": "ddc6b8408acb",
    "kl": "a9749a5e1fd1",
    "vq_small": "7bada5235cb6",
    "kl_small": "b901cc3d7f83",
    "beta_vae_small": "81cbb3055817",
    "factor_vae_small": "d5687c51b1d1",
    "pca_ica_small": "9af0cfa23df2",
    "encdiff": "54be84007e31",
    "encdiff_small": "84a78377696f",
    "diffusion": "c368ff020975",
    "diffusion_small": "2c3ff22c8471",
    "disdiff": "2dff8656fc7d",
    "disdiff_small": "8bbe7196eec3",
    "annealed_vae_small": "786a541c8f56",
    "dip_vae_i_small": "9b7a1c180896",
    "dip_vae_ii_small": "58019898084d",
    "beta_tcvae_small": "0d3b95fd278e",
    "proto_vae_small": "87f04431e5d4",
    "dot_vae_small": "75ef9070e9d4",
    "cs_dismo_small": "b7fb382c97b6",
    "beta_vae_published": "7bc7af3c5a89",
    "annealed_vae_published": "e2b7983219fd",
    "dip_vae_i_published": "4568a4a8b505",
    "dip_vae_ii_published": "5da461e5c92a",
    "beta_tcvae_published": "b277857a9b40",
    "factor_vae_published": "0296dd420ece",
    "ae_ica_small": "94ebb68786a2",
    "iso_ae_ica_small": "da65f5a4f7ac",
    "hlle_ica_small": "b071296bf065",
}


def test_a_run_of_a_preset_keeps_its_name() -> None:
    texts = {name: json.dumps(settings(preset), sort_keys=True) for name, preset in PRESETS.items()}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()} == NAMES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_expands_to_what_it_sets_and_the_variants_of_its_sections(name: str) -> None:
    tree = expand({"preset": name})
    assert RunConfig.model_validate(tree) == PRESETS[name]
    assert {"name"} <= tree["data"].keys()
    assert tree["method"]["kind"] == PRESETS[name].method.kind
    assert tree["first_stage"]["kind"] == PRESETS[name].first_stage.kind


def test_what_a_preset_does_not_set_is_not_in_its_tree() -> None:
    assert expand({"preset": "kl"}) == {
        "data": {"name": "shapes3d_procedural", "image_size": 64},
        "first_stage": {"kind": "pixel"},
        "method": {"kind": "kl"},
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


def test_reference_has_the_published_sizes() -> None:
    run = RunConfig.model_validate(expand({"preset": "reference"}))
    assert (run.method.num_units, run.method.unit_dim) == (20, 32)
    assert run.method.encoder.hidden_dims == (4096, 256)
    assert (run.method.anchors.mode, run.method.unet.model_dim) == ("constant", 64)
    assert (run.latent_size, run.train.batch_size, run.train.learning_rate) == (16, 512, 1e-4)
    assert run.train.precision == "bf16"


def num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_encdiff_has_the_published_sizes() -> None:
    stage = {"first_stage": {"kind": "vq", "checkpoint": "x"}}
    with torch.device("meta"):
        method = build_method(RunConfig.model_validate(expand({"preset": "encdiff", **stage})), 3)
    assert isinstance(method, DygaSd)
    assert (num_weights(method.unet), num_weights(method.encoder)) == (37_469_635, 1_374_292)
    assert isinstance(method.first_stage, VqAutoencoder)
    stage = method.first_stage
    assert (num_weights(stage.encoder), num_weights(stage.decoder)) == (1_403_363, 2_068_547)
    assert method.refit_images is None
    assert method.unet.skip_dropout_rate == 0.0


def test_disdiff_has_the_published_sizes() -> None:
    run = expand({"preset": "disdiff", "first_stage": {"kind": "vq", "checkpoint": "x"}})
    assert run["method"]["kind"] == "disdiff"
    with torch.device("meta"):
        method = build_method(RunConfig.model_validate(run), 3)
    assert isinstance(method, Disdiff)
    unet, decoder = method.diffusion.unet, method.decoder
    assert (num_weights(unet), num_weights(unet) + num_weights(decoder)) == (29_422_467, 52_161_158)
    assert num_weights(decoder.code_in) == 8_448
    assert num_weights(decoder.concept_in) == 33_024
    assert decoder.concept_matrix.numel() == 16_384
    time_dim, split = unet.time_dim, sum(decoder.widths[:2])  # two stages in the middle
    middle = num_weights(decoder.middle) + 2 * (time_dim + 1) * split
    up = num_weights(decoder.up) + 2 * (time_dim + 1) * (sum(decoder.widths) - split)
    assert (middle, up) == (3_152_384, 19_526_592)
    assert num_weights(method.encoder) == 1_516_480


@pytest.mark.parametrize("suffix", ["", "_small"])
def test_disdiff_borrows_what_the_preset_beside_it_trains(suffix: str) -> None:
    ours, theirs = PRESETS[f"disdiff{suffix}"], PRESETS[f"diffusion{suffix}"]
    assert ours.method.borrowed is not None
    assert ours.method.borrowed.model_dump(exclude={"checkpoint"}) == theirs.method.model_dump()
    assert (ours.first_stage, ours.data) == (theirs.first_stage, theirs.data)


def test_another_encoder_starts_from_its_own_defaults() -> None:
    small = expand({"preset": "small", "method": {"encoder": {"kind": "residual"}}})
    assert small["method"]["encoder"] == {"kind": "residual"}
    assert RunConfig.model_validate(small).method.num_units == 12
    narrower = expand({"preset": "small", "method": {"encoder": {"hidden_dims": [64]}}})
    assert narrower["method"]["encoder"]["stem_stride"] == 8


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("_published")])
def test_the_autoencoders_are_trained_as_published(name: str) -> None:
    """disentanglement_lib: 300,000 steps of 64 images at 1e-4, the last weights, images of 64 px."""
    run = RunConfig.model_validate(expand({"preset": name}))
    assert run.method == type(run.method)()
    assert f"{run.method.kind}_published" == name
    assert (run.train.num_images / run.train.batch_size, run.train.batch_size) == (300_000, 64)
    assert (run.train.learning_rate, run.train.learning_rate_schedule, run.train.ema_decay) == (1e-4, "constant", 0.0)
    assert (run.data.image_size, run.data.levels, run.evaluation.protocol) == (64, {}, "published")


@pytest.mark.parametrize("name", ["vq", "kl"])
def test_the_first_stages_have_the_published_sizes(name: str) -> None:
    run = RunConfig.model_validate(expand({"preset": name}))
    method = run.method
    assert (method.kind, method.reduction, method.model_dim, method.multipliers) == (name, 4, 32, (1, 2, 4))
    assert (method.num_blocks, method.latent_dim, getattr(method, "num_embeddings", 2048)) == (2, 3, 2048)


@pytest.mark.parametrize("name", ["vq", "kl"])
def test_the_small_first_stages_fit_the_small_preset(name: str) -> None:
    small, stage = (RunConfig.model_validate(expand({"preset": preset})) for preset in ("small", f"{name}_small"))
    assert stage.data == small.data
    network = {key: getattr(stage.method, key) for key in ("stem_stride", "model_dim", "multipliers", "latent_dim")}
    run = expand({"preset": "small", "first_stage": {"kind": name, "checkpoint": "x", **network}})
    assert RunConfig.model_validate(run).latent_size == small.latent_size == 8


def test_other_entries_override_the_preset_key_by_key() -> None:
    run = RunConfig.model_validate(
        expand({"preset": "tiny", "seed": 3, "train": {"batch_size": 8}, "method": {"anchors": {"mode": "off"}}})
    )
    assert (run.seed, run.train.batch_size, run.method.anchors.mode) == (3, 8, "off")
    assert (run.train.num_images, run.method.anchors.num_gaussians) == (512, 2)  # the preset's


def test_a_tree_without_a_preset_is_only_copied() -> None:
    tree = {"train": {"batch_size": 8}}
    copied = expand(tree)
    assert copied == tree
    copied["train"]["batch_size"] = 9
    assert tree["train"]["batch_size"] == 8


def test_expanding_leaves_the_presets_alone() -> None:
    expand({"preset": "tiny"})["method"]["num_units"] = 99
    assert expand({"preset": "tiny"})["method"]["num_units"] == 4


def test_another_data_set_keeps_the_presets_image_size_and_none_of_its_levels() -> None:
    run = RunConfig.model_validate(expand({"preset": "small", "data": {"name": "dsprites_procedural"}}))
    assert (run.data.image_size, run.data.levels) == (64, {})
    same = expand({"preset": "small", "data": {"name": "shapes3d_procedural"}})
    assert same == expand({"preset": "small"})


def test_another_first_stage_starts_from_its_own_defaults() -> None:
    unet = {"attention_sizes": [8], "skip_dropout_sizes": [16]}
    run = RunConfig.model_validate(
        expand({"preset": "tiny", "first_stage": {"kind": "pixel"}, "method": {"unet": unet}})
    )
    assert run.first_stage == PixelStage()


@pytest.mark.parametrize("name", ["smal", None, 3, ["tiny"]])
def test_a_preset_that_does_not_exist_is_refused_with_those_that_do(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset .*: use one of reference, small, tiny"):
        expand({"preset": name})


@pytest.mark.parametrize("section", ["data", "first_stage", "method"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_section_that_is_no_mapping_is_left_for_the_parser_to_refuse(section: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"file: {section}: found {value}, "):
        parse(RunConfig, expand({"preset": "tiny", section: value}), source="file")
