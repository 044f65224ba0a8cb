"""What the configurations of all methods answer for themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from raydis.config import RunConfig
from raydis.config.files import field_paths, parse
from raydis.config.presets import PRESETS
from raydis.errors import ConfigError
from raydis.sweep.domains import Domain, corners
from raydis.sweep.settings import configure, value_at
from raydis.sweep.spec import SweepSpec

VAES = ["beta_vae", "annealed_vae", "factor_vae", "dip_vae_i", "dip_vae_ii", "beta_tcvae", "proto_vae", "dot_vae"]
SCORED = ["dyga_sd", *VAES, "cs_dismo", "pca_ica", "ae_ica", "iso_ae_ica", "hlle_ica", "disdiff"]
STAGES = ["vq", "kl", "unconditional_diffusion"]


def run_of(kind: str, **options: Any) -> RunConfig:
    stage = {"first_stage": {"kind": "pixel"}} if kind in ("vq", "kl") else {}
    stage |= {"evaluation": {"protocol": "none"}} if kind in STAGES else {}
    return RunConfig.model_validate({"method": {"kind": kind, **options}, **stage})


@pytest.mark.parametrize("kind", SCORED + STAGES)
def test_a_kind_alone_is_a_valid_run_with_a_description_of_every_key(kind: str) -> None:
    method = run_of(kind).method
    assert method.kind == kind
    assert method.scored is (kind in SCORED)
    for name, field in type(method).model_fields.items():
        described = isinstance(getattr(method, name), str | int | float | tuple) and name != "kind"
        assert bool(field.description) or not described, name


def test_a_method_without_a_kind_is_dyga_sd() -> None:
    assert RunConfig.model_validate({"method": {"num_units": 12}}).method.kind == "dyga_sd"


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="'kind' is 'beta', expected one of 'dyga_sd', 'beta_vae', 'annealed_vae'"):
        parse(RunConfig, {"method": {"kind": "beta"}}, source="file")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("beta_vae", "beta", -0.1),
        ("beta_vae", "beta", float("inf")),
        ("beta_vae", "num_units", 1),
        ("beta_vae", "num_units", 257),
        ("beta_vae", "hidden_dim", 0),
        ("beta_vae", "gamma", 1.0),
        ("factor_vae", "gamma", -1.0),
        ("factor_vae", "discriminator_dims", []),
        ("factor_vae", "discriminator_dims", [0]),
        ("factor_vae", "discriminator_rate_scale", 0.0),
        ("factor_vae", "beta", 1.0),
        ("annealed_vae", "max_capacity", -1.0),
        ("annealed_vae", "capacity_share", 0.0),
        ("annealed_vae", "capacity_share", 1.1),
        ("dip_vae_i", "off_diagonal_weight", -1.0),
        ("dip_vae_ii", "covariance_of", "mean"),
        ("beta_tcvae", "beta", -1.0),
        ("proto_vae", "intervention", "other"),
        ("proto_vae", "warmup_share", 1.0),
        ("dot_vae", "unlock_share", 0.0),
        ("dot_vae", "pretraining_share", 1.0),
        ("dot_vae", "max_refusals", 0),
        ("pca_ica", "num_units", 1),
        ("pca_ica", "fit_images", 15),
        ("pca_ica", "max_iterations", 0),
        ("pca_ica", "tolerance", 0.0),
        ("disdiff", "disentanglement_weight", -0.1),
        ("disdiff", "weighting", "pixel"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(kind: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"method\.{kind}\.{key}"):
        run_of(kind, **{key: value})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("beta_vae", "beta", 0.0),
        ("beta_vae", "num_units", 2),
        ("factor_vae", "gamma", 0.0),
        ("factor_vae", "discriminator_dims", [1]),
        ("annealed_vae", "capacity_share", 1.0),
        ("proto_vae", "warmup_share", 0.0),
        ("dot_vae", "pretraining_share", 0.0),
        ("pca_ica", "fit_images", 16),
        ("pca_ica", "max_iterations", 1),
    ],
)
def test_values_at_their_bounds_are_allowed(kind: str, key: str, value: Any) -> None:
    found = getattr(run_of(kind, **{key: value}).method, key)
    assert (list(found) if isinstance(found, tuple) else found) == value


def test_the_defaults_are_the_published_ones() -> None:
    """disentanglement_lib: 10 units, layers of 256; six layers of 1000 in the discriminator."""
    beta_vae, factor_vae = run_of("beta_vae").method, run_of("factor_vae").method
    assert (getattr(beta_vae, "num_units", None), getattr(beta_vae, "hidden_dim", None)) == (10, 256)
    assert getattr(factor_vae, "discriminator_dims", None) == (1000,) * 6
    assert getattr(factor_vae, "discriminator_rate_scale", None) == 1.0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("annealed_vae", {"gamma": 1000.0, "capacity_share": 100_000 / 300_000}),
        ("dip_vae_i", {"diagonal_factor": 10.0}),
        ("dip_vae_ii", {"diagonal_factor": 1.0}),
    ],
)
def test_what_the_published_study_does_not_vary_has_its_value(kind: str, settings: dict[str, float]) -> None:
    method = run_of(kind).method
    assert {name: getattr(method, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        ("beta_vae", "beta", {1, 2, 4, 6, 8, 16}),
        ("annealed_vae", "max_capacity", {5, 10, 25, 50, 75, 100}),
        ("dip_vae_i", "off_diagonal_weight", {1, 2, 5, 10, 20, 50}),
        ("dip_vae_ii", "off_diagonal_weight", {1, 2, 5, 10, 20, 50}),
        ("beta_tcvae", "beta", {1, 2, 4, 6, 8, 10}),
    ],
)
def test_a_default_is_one_of_the_values_that_the_published_study_tries(kind: str, key: str, values: set[int]) -> None:
    assert getattr(run_of(kind).method, key) in values
    domain = TypeAdapter(Domain).validate_python(run_of(kind).method.default_search_space()[f"method.{key}"])
    assert all(domain.holds(float(value)) for value in values)


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize("size", [16, 64, 72])
def test_images_must_halve_four_times_for_the_convolutions(kind: str, size: int) -> None:
    tree = {"method": {"kind": kind}, "data": {"image_size": size}}
    if size % 16 == 0:
        assert RunConfig.model_validate(tree).data.image_size == size
        return
    with pytest.raises(ValidationError, match=rf"image_size=72 must be a multiple of 16 for method\.kind={kind}"):
        RunConfig.model_validate(tree)


@pytest.mark.parametrize("kind", [*VAES, "cs_dismo", "pca_ica"])
def test_methods_of_pixels_refuse_a_learned_first_stage_and_compiled_blocks(kind: str) -> None:
    with pytest.raises(
        ValidationError, match=rf"kind={kind} works on the pixels themselves: remove first_stage\.kind=vq"
    ):
        RunConfig.model_validate({"method": {"kind": kind}, "first_stage": {"kind": "vq", "checkpoint": "x"}})
    with pytest.raises(ValidationError, match=rf"kind={kind} has no U-Net: set compute\.compile=off"):
        RunConfig.model_validate({"method": {"kind": kind}, "compute": {"compile": "blocks"}})


@pytest.mark.parametrize("kind", [kind for kind in [*VAES, "cs_dismo", "pca_ica"] if kind != "dot_vae"])
def test_nothing_is_too_short_for_a_method_without_refits(kind: str) -> None:
    run = RunConfig.model_validate({"method": {"kind": kind}, "train": {"num_images": 1, "batch_size": 1}})
    assert run.method.warnings(run) == []


@pytest.mark.parametrize(
    ("num_images", "options", "most"),
    [
        (6_400, {}, None),  # a unit each 320 images from image 640 on
        (6_400, {"unlock_share": 0.2}, 5),  # the first after 640 images, then after 1280, 2560, 3840 and 5120
        (6_400, {"pretraining_share": 0.9}, 2),  # after 5760 and 6080
        (64, {}, 0),  # a single step, which belongs to the pre-training
        (1_280, {}, None),  # a unit in each step
    ],
)
def test_a_run_that_is_too_short_for_all_units_to_open_says_so(num_images: int, options: Any, most: int | None) -> None:
    train = {"num_images": num_images, "batch_size": 64}
    run = RunConfig.model_validate({"method": {"kind": "dot_vae", **options}, "train": train})
    found = run.method.warnings(run)
    assert (most is None) == (found == [])
    assert most is None or found[0].startswith(f"at most {most} of method.num_units=10 units can open: lower ")


# ---- default search spaces


@pytest.mark.parametrize("kind", SCORED)
def test_a_default_search_space_names_keys_of_its_own_method_and_valid_domains(kind: str) -> None:
    run = run_of(kind)
    space = {key: TypeAdapter(Domain).validate_python(tree) for key, tree in run.method.default_search_space().items()}
    assert space
    for key, domain in space.items():
        assert key in field_paths(RunConfig)
        assert domain.holds(value_at(run, key)), f"{key} does not hold its default"
    for corner in corners(space):
        configured = configure(run, corner)
        assert {key: value_at(configured, key) for key in corner} == corner


@pytest.mark.parametrize(
    ("options", "domains"),
    [
        ({}, {"method.anchors.num_gaussians": (4, 16), "method.unet.skip_dropout_rate": (0.0, 0.4)}),
        ({"anchors": {"mode": "off"}}, {"method.unet.skip_dropout_rate": (0.0, 0.4)}),
        ({"anchors": {"mode": "ramp", "shift_rate": 0.0}}, {"method.unet.skip_dropout_rate": (0.0, 0.4)}),
        ({"unet": {"skip_dropout_sizes": []}}, {"method.anchors.num_gaussians": (4, 16)}),
        (
            {"anchors": {"num_gaussians": 2, "max_gaussians": 8}, "unet": {"skip_dropout_sizes": []}},
            {"method.anchors.num_gaussians": (2, 8)},
        ),
        (
            {"anchors": {"num_gaussians": 20}, "unet": {"skip_dropout_sizes": []}},
            {"method.anchors.num_gaussians": (4, 20)},
        ),
        ({"anchors": {"num_gaussians": 1, "max_gaussians": 1}, "unet": {"skip_dropout_sizes": []}}, {}),
    ],
)
def test_dyga_sd_offers_no_key_that_changes_nothing(options: Any, domains: dict[str, tuple[float, float]]) -> None:
    space = run_of("dyga_sd", **options).method.default_search_space()
    assert space.pop("method.unit_dim")["values"] == [16, 32, 64]
    assert {key: (domain["low"], domain["high"]) for key, domain in space.items()} == domains


@pytest.mark.parametrize("kind", SCORED)
def test_a_sweep_without_a_search_of_its_own_searches_the_default_space(kind: str) -> None:
    run = run_of(kind)
    spec = SweepSpec.model_validate({"name": "x", "run": run})
    assert set(spec.search) == set(run.method.default_search_space())
    assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec
    controls = [{"name": "as_it_is"}]
    assert SweepSpec.model_validate({"name": "x", "run": run, "num_trials": 0, "controls": controls}).search == {}


@pytest.mark.parametrize("preset", [name for name, run in PRESETS.items() if run.method.scored])
def test_a_sweep_of_a_preset_needs_no_search_of_its_own(preset: str) -> None:
    spec = SweepSpec.model_validate({"name": "x", "run": PRESETS[preset]})
    assert spec.search


@pytest.mark.parametrize("kind", STAGES)
def test_a_first_stage_has_nothing_to_search(kind: str) -> None:
    assert run_of(kind).method.default_search_space() == {}


# ---- DisDiff


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"concept_dim": 4},
            r"method\.concept_dim=4 gives no 6 orthogonal embeddings: use at least method\.num_units=6",
        ),
        (
            {"pretrained": {"diffusion": {"prediction": "sample"}}},
            r"diffusion\.prediction=sample: the fields are defined",
        ),
        ({"pretrained": {"unet": {"attention_sizes": [5]}}}, r"method\.pretrained\.unet\.attention_sizes has \[5\]"),
        ({"pretrained": {"unet": {"num_heads": 7}}}, r"num_heads=7 must divide"),
        (
            {"pretrained": {"unet": {"multipliers": [1] * 9, "attention_sizes": []}}},
            r"give method\.pretrained\.unet\.multipliers fewer levels",
        ),
    ],
)
def test_settings_of_disdiff_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_of("disdiff", **options)


def test_a_run_names_the_checkpoints_that_it_takes_weights_from_and_takes_others_in_their_place() -> None:
    stage = {"kind": "vq", "checkpoint": "a"}
    run = RunConfig.model_validate(
        {"first_stage": stage, "method": {"kind": "disdiff", "pretrained": {"checkpoint": "b"}}}
    )
    assert run.checkpoints() == {"first_stage.checkpoint": "a", "method.pretrained.checkpoint": "b"}
    moved = {"first_stage.checkpoint": "c", "method.pretrained.checkpoint": "d"}
    assert run.with_checkpoints(moved).checkpoints() == moved
    assert run.with_checkpoints(moved).with_checkpoints(run.checkpoints()) == run
    assert run_of("disdiff").checkpoints() == run_of("beta_vae").checkpoints() == {}


# ---- Hessian eigenmaps


@pytest.mark.parametrize(("num_units", "neighbors"), [(2, 18), (3, 26), (6, 62)])
def test_the_number_of_neighbors_follows_from_the_number_of_units(num_units: int, neighbors: int) -> None:
    assert getattr(run_of("hlle_ica", num_units=num_units).method, "neighbors", None) == neighbors
    assert getattr(run_of("hlle_ica", num_units=2, num_neighbors=20).method, "neighbors", None) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_units": 3, "num_neighbors": 9},
            r"num_neighbors=9 must exceed N \(N \+ 3\) / 2 = 9 for num_units=3: raise",
        ),
        ({"num_units": 6, "pca_dims": 5}, "pca_dims=5 must be at least num_units=6"),
        ({"num_units": 3, "fit_images": 26}, "fit_images=26 must exceed the number of neighbours, 26"),
    ],
)
def test_eigenmaps_that_are_not_determined_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_of("hlle_ica", **options)


def test_eigenmaps_reserve_memory_and_no_gpu() -> None:
    compute = {"device": "cuda", "num_gpus": 1, "num_cpus": 2}
    method = {"kind": "hlle_ica", "num_units": 3, "fit_images": 4000}
    run = RunConfig.model_validate({"method": method, "compute": compute, "data": {"image_size": 32}})
    assert (run.hardware.device, run.hardware.num_gpus, run.hardware.num_cpus) == ("cpu", 0.0, 2)
    assert run.hardware.memory_bytes == 4000 * (48 * 26**2 + 2 * 4 * 3 * 32**2)
    assert run_of("beta_vae").hardware == run_of("beta_vae").compute
