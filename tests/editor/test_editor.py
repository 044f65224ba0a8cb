from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.data import FactorDataset
from raydis.diffusion.samplers import SAMPLERS
from raydis.editor.editor import Editor
from raydis.editor.units import Encoded
from raydis.errors import CheckpointError, EditError, RegistryError
from raydis.registry import Registry
from raydis.store import LocalStore

UNITS, DIM, SIZE = 4, 8, 16  # of the tiny preset
STEPS = 3


@pytest.fixture(scope="module")
def images(dataset: FactorDataset) -> np.ndarray:
    return dataset.images(np.array([0, 100, 200, 323]))


@pytest.fixture
def algebra(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """An editor whose pictures are their scalars, so that what an edit does to units is seen exactly."""
    editor = Editor.open(checkpoint)
    monkeypatch.setattr(
        editor, "encode", lambda pictures: Encoded(np.array(pictures, np.float32), np.array(pictures)[..., None], {})
    )
    monkeypatch.setattr(editor, "decode", lambda units, **options: np.array(units))
    return editor


# ---- encode


def test_a_read_only_image_such_as_pillow_gives_is_encoded(editor: Editor, images: np.ndarray) -> None:
    read_only = images.copy()
    read_only.flags.writeable = False
    assert (editor.encode(read_only).units == editor.encode(images).units).all()


def test_encoding_gives_scalars_codes_and_the_anchor_of_each_unit(editor: Editor, images: np.ndarray) -> None:
    encoded = editor.encode(images)
    assert isinstance(encoded, Encoded)
    assert (encoded.units.shape, encoded.units.dtype) == ((4, UNITS), np.float32)
    assert (encoded.codes.shape, encoded.codes.dtype) == ((4, UNITS, DIM), np.float32)
    assert encoded.facts.keys() == {"component", "responsibility"}
    component, responsibility = encoded.facts["component"], encoded.facts["responsibility"]
    assert (component.shape, component.dtype) == ((4, UNITS), np.int64)
    assert (responsibility.shape, responsibility.dtype) == ((4, UNITS), np.float32)
    counts = np.array([unit.counts["num_components"] for unit in editor.units()])
    assert counts.sum() > 0
    assert (component < np.maximum(counts, 0)).all()
    assert ((component >= 0) == (counts > 0)).all()
    assert ((responsibility > 0) == (counts > 0)).all()
    assert responsibility.max() <= 1.0


def test_an_image_is_encoded_without_its_batch_mates(editor: Editor, images: np.ndarray) -> None:
    together, alone = editor.encode(images), editor.encode(images[2:3])
    np.testing.assert_allclose(together.units[2:3], alone.units, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together.codes[2:3], alone.codes, rtol=0, atol=1e-5)
    assert (together.facts["component"][2:3] == alone.facts["component"]).all()


def test_units_tell_the_range_that_was_measured(checkpoint: Path) -> None:
    editor = Editor.open(checkpoint)
    editor.method.unit_quantiles.copy_(torch.arange(21.0) * torch.tensor([[1.0], [2.0], [3.0], [-1.0]]))
    found = [(unit.index, unit.low, unit.median, unit.high) for unit in editor.units()]
    assert found == [(0, 0, 10, 20), (1, 0, 20, 40), (2, 0, 30, 60), (3, 0, -10, -20)]


# ---- decode and edit


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_pictures(editor: Editor, images: np.ndarray) -> None:
    first = editor.edit(images, seed=3, steps=STEPS)
    assert (first.shape, first.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    assert (editor.edit(images, seed=3, steps=STEPS) == first).all()
    assert (editor.edit(images, seed=4, steps=STEPS) != first).any(axis=(1, 2, 3)).all()


def test_one_seed_means_one_starting_noise_and_a_list_gives_each_image_its_own(
    editor: Editor, images: np.ndarray
) -> None:
    units = np.repeat(editor.encode(images).units[:1], 3, axis=0)
    same = editor.decode(units, seed=5, steps=STEPS)
    assert (same[0] == same[1]).all()
    mixed = editor.decode(units, seed=[5, 6, 5], steps=STEPS)
    assert (mixed[0] == same[0]).all()
    assert (mixed[2] == same[0]).all()
    assert (mixed[1] != same[1]).any()


def test_decoding_ignores_the_global_generator(editor: Editor, images: np.ndarray) -> None:
    units = editor.encode(images).units
    torch.manual_seed(1)
    first = editor.decode(units, steps=STEPS)
    torch.manual_seed(2)
    assert (editor.decode(units, steps=STEPS) == first).all()


def test_setting_and_shifting_change_the_named_units_alone(algebra: Editor) -> None:
    pictures = np.arange(8.0).reshape(2, UNITS)
    edited = algebra.edit(pictures, set={1: -3.0}, shift={2: 0.5, 0: -1.0})
    assert edited.tolist() == [[-1, -3, 2.5, 3], [3, -3, 6.5, 7]]
    assert pictures.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert algebra.edit(pictures).tolist() == pictures.tolist()


def test_an_edit_changes_the_picture(editor: Editor, images: np.ndarray) -> None:
    unit = max(editor.units(), key=lambda unit: unit.high - unit.low)
    plain = editor.edit(images[:1], steps=STEPS)
    moved = editor.edit(images[:1], shift={unit.index: 10 * (unit.high - unit.low)}, steps=STEPS)
    assert (moved != plain).any()


# ---- samplers and details


@pytest.fixture
def knowing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """An editor whose U-Net is exact for latents N(0, 1) whatever the units are: pictures are their details alone."""
    editor = Editor.open(checkpoint)
    levels = editor.method.denoising.alpha_bars
    monkeypatch.setattr(
        editor.method.unet, "forward", lambda z, t, condition: (1.0 - levels[t]).sqrt().view(-1, 1, 1, 1) * z
    )
    return editor


def first_stage_of(editor: Editor, images: np.ndarray) -> np.ndarray:
    """What the first stage alone makes of images."""
    stage = editor.method.first_stage
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = stage.decode(stage.encode(pictures)).clamp(-1, 1)
    return ((decoded + 1) * 127.5).permute(0, 2, 3, 1).numpy()


def test_each_sampler_draws_and_the_default_is_unipc(editor: Editor, images: np.ndarray) -> None:
    drawn = {sampler: editor.edit(images[:1], steps=STEPS, sampler=sampler).tobytes() for sampler in SAMPLERS}
    assert len(set(drawn.values())) == len(SAMPLERS)
    assert editor.edit(images[:1], steps=STEPS).tobytes() == drawn["unipc"]


def test_an_unknown_sampler_is_refused(editor: Editor, images: np.ndarray) -> None:
    with pytest.raises(EditError, match="unknown sampler euler: use ddim, dpmpp_2m, dpmpp_2m_karras, unipc"):
        editor.edit(images, sampler="euler")


@pytest.mark.parametrize(("steps", "error"), [(20, 3.0), (50, 0.7)])
def test_an_image_whose_details_are_kept_comes_back_as_the_first_stage_has_it(
    knowing: Editor, images: np.ndarray, steps: int, error: float
) -> None:
    kept = knowing.edit(images, steps=steps, keep_details=True)
    expected = first_stage_of(knowing, images)
    assert np.sqrt(np.square(kept - expected).mean()) < error  # of 255 levels
    drawn = knowing.edit(images, steps=steps)
    assert np.sqrt(np.square(drawn - expected).mean()) > 20 * error


def test_a_seed_has_no_influence_where_details_are_kept(editor: Editor, images: np.ndarray) -> None:
    kept = [editor.edit(images[:1], seed=seed, steps=STEPS, keep_details=True) for seed in (0, 1)]
    assert (kept[0] == kept[1]).all()


def test_keeping_details_is_decoding_from_them(editor: Editor, images: np.ndarray) -> None:
    details = editor.details(images[:2], steps=STEPS)
    assert (details.shape, details.dtype) == ((2, *editor.method.noise_shape), np.float32)
    edited = editor.edit(images[:2], set={1: 0.5}, steps=STEPS, keep_details=True)
    units = editor.edit_units(editor.encode(images[:2]).units, set={1: 0.5})
    assert (editor.decode(units, details=details, steps=STEPS) == edited).all()
    assert (editor.decode(units, details=details, steps=STEPS, sampler="ddim") == edited).all()


def test_swaps_and_traversals_keep_the_details_of_the_image_they_change(knowing: Editor, images: np.ndarray) -> None:
    source, target = images[:1], images[3:]
    options = {"steps": 20, "keep_details": True}
    itself = knowing.edit(source, **options)
    assert np.abs(knowing.swap(source, target, [0, 2], **options) - itself.astype(int)).max() <= 1
    assert np.abs(knowing.swap_each(source[0], target[0], **options) - itself.astype(int)).max() <= 1
    assert np.abs(knowing.traverse(source[0], num_values=2, **options) - itself.astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_karras", "unipc"])
def test_only_ddim_keeps_details(editor: Editor, images: np.ndarray, sampler: str) -> None:
    message = f"sampler={sampler} cannot keep details: only ddim is inverted, leave the sampler out"
    with pytest.raises(EditError, match=message):
        editor.edit(images, sampler=sampler, keep_details=True)
    with pytest.raises(EditError, match=message):
        editor.decode(np.zeros((1, UNITS)), sampler=sampler, details=np.zeros((1, 6, 4, 4)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 6, 4, 4)), r"details have shape \(2, 6, 4, 4\): give shape \(1, 6, 4, 4\)"),
        (np.zeros((1, 6, 8, 8)), r"details have shape \(1, 6, 8, 8\): give shape \(1, 6, 4, 4\)"),
        (np.full((1, 6, 4, 4), np.nan), "details hold NaN or infinity: give finite values"),
        (np.full((1, 6, 4, 4), np.inf), "details hold NaN or infinity: give finite values"),
    ],
)
def test_details_of_another_shape_or_not_finite_are_refused(editor: Editor, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(EditError, match=message):
        editor.decode(np.zeros((1, UNITS)), details=wrong)


# ---- swap


@pytest.mark.parametrize("unit", range(UNITS))
def test_swapping_a_unit_of_an_image_with_itself_is_a_reconstruction(
    editor: Editor, images: np.ndarray, unit: int
) -> None:
    swapped = editor.swap(images, images, [unit], seed=1, steps=STEPS)
    assert (swapped == editor.edit(images, seed=1, steps=STEPS)).all()


def test_swapping_all_units_reconstructs_the_other_image(editor: Editor, images: np.ndarray) -> None:
    source, target = images[:2], images[2:]
    swapped = editor.swap(source, target, range(UNITS), seed=1, steps=STEPS)
    assert (swapped == editor.edit(target, seed=1, steps=STEPS)).all()
    assert (swapped != editor.edit(source, seed=1, steps=STEPS)).any()


def test_swapping_there_and_back_is_the_identity_on_units(algebra: Editor) -> None:
    source, target = np.arange(8.0).reshape(2, UNITS), -np.arange(8.0).reshape(2, UNITS) - 1
    once = algebra.swap(source, target, [1, 3])
    assert once.tolist() == [[0, -2, 2, -4], [4, -6, 6, -8]]
    assert algebra.swap(once, source, [1, 3]).tolist() == source.tolist()


def test_swap_each_swaps_one_unit_a_row(algebra: Editor) -> None:
    rows = algebra.swap_each(np.zeros(UNITS), np.arange(1.0, 1 + UNITS))
    assert rows.tolist() == np.diag([1.0, 2.0, 3.0, 4.0]).tolist()


def test_swap_each_draws_what_swap_draws(editor: Editor, images: np.ndarray) -> None:
    source, target = images[0], images[3]
    each = editor.swap_each(source, target, seed=2, steps=STEPS)
    assert each.shape == (UNITS, SIZE, SIZE, 3)
    for unit in range(UNITS):
        alone = editor.swap(source[None], target[None], [unit], seed=2, steps=STEPS)[0]
        assert np.abs(each[unit].astype(int) - alone.astype(int)).max() <= 1  # other batch sizes round otherwise


# ---- traverse


def test_a_traversal_walks_the_named_units_along_their_quantiles(algebra: Editor) -> None:
    algebra.method.unit_quantiles.copy_(torch.arange(21.0) * torch.tensor([[1.0], [1.0], [2.0], [-1.0]]))
    start = np.full(UNITS, 100.0)
    drawn = algebra.traverse(start, units=[2, 0], num_values=3)
    assert drawn.shape == (2, 3, UNITS)
    np.testing.assert_allclose(drawn[0], [[100, 100, 1, 100], [100, 100, 20, 100], [100, 100, 39, 100]], rtol=1e-5)
    np.testing.assert_allclose(drawn[1, :, 0], [0.5, 10, 19.5], rtol=1e-5)
    assert (drawn[1, :, 1:] == 100).all()


def test_a_traversal_is_a_row_a_unit_and_a_column_a_value(editor: Editor, images: np.ndarray) -> None:
    drawn = editor.traverse(images[0], num_values=5, seed=1, steps=1)
    assert (drawn.shape, drawn.dtype) == ((UNITS, 5, SIZE, SIZE, 3), np.uint8)
    some = editor.traverse(images[0], units=[3], num_values=5, seed=1, steps=1)
    assert some.shape == (1, 5, SIZE, SIZE, 3)
    assert np.abs(some[0].astype(int) - drawn[3].astype(int)).max() <= 1


# ---- refusals


@pytest.mark.parametrize("unit", [-1, UNITS, 99])
def test_a_unit_that_does_not_exist_is_refused_everywhere(editor: Editor, images: np.ndarray, unit: int) -> None:
    message = rf"no unit {unit}: this model has units 0 to 3"
    with pytest.raises(EditError, match=message):
        editor.edit(images, set={unit: 0.0})
    with pytest.raises(EditError, match=message):
        editor.edit(images, shift={unit: 0.0})
    with pytest.raises(EditError, match=message):
        editor.swap(images, images, [0, unit])
    with pytest.raises(EditError, match=message):
        editor.traverse(images[0], units=[unit])


def test_a_unit_both_set_and_shifted_is_refused(editor: Editor, images: np.ndarray) -> None:
    with pytest.raises(EditError, match="unit 2 is both set and shifted: give one of them"):
        editor.edit(images, set={2: 0.0}, shift={2: 1.0})


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros((1, SIZE, SIZE, 3), np.float32), r"images are float32 of shape \(1, 16, 16, 3\)"),
        (np.zeros((1, SIZE, SIZE, 1), np.uint8), r"images are uint8 of shape \(1, 16, 16, 1\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"images are uint8 of shape \(1, 8, 8, 3\)"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"images are uint8 of shape \(16, 16, 3\)"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(editor: Editor, wrong: np.ndarray, found: str) -> None:
    with pytest.raises(EditError, match=rf"{found}: give uint8 of shape \(B, 16, 16, 3\)"):
        editor.encode(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((1, 3)), r"units have shape \(1, 3\): give shape \(B, 4\)"),
        (np.zeros(UNITS), r"units have shape \(4,\): give shape \(B, 4\)"),
        (np.full((1, UNITS), np.nan), "units hold NaN or infinity: give finite values"),
        (np.full((1, UNITS), -np.inf), "units hold NaN or infinity: give finite values"),
    ],
)
def test_scalars_of_another_shape_or_not_finite_are_refused(editor: Editor, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(EditError, match=message):
        editor.decode(wrong)


def test_as_many_seeds_as_images_are_needed(editor: Editor) -> None:
    with pytest.raises(EditError, match="2 seeds for 3 images"):
        editor.decode(np.zeros((3, UNITS)), seed=[1, 2])


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_the_schedule_has_or_none_are_refused(editor: Editor, steps: int) -> None:
    with pytest.raises(EditError, match=rf"steps={steps} is out of range: this model draws in 1 to 1000 steps"):
        editor.decode(np.zeros((1, UNITS)), steps=steps)
    with pytest.raises(EditError, match=f"steps={steps} is out of range"):
        editor.details(np.zeros((1, SIZE, SIZE, 3), np.uint8), steps=steps)


# ---- open


def test_a_checkpoint_says_what_its_editor_was_trained_on(editor: Editor, dataset: FactorDataset) -> None:
    assert editor.image_shape == (SIZE, SIZE, 3)
    assert editor.num_units == UNITS
    assert editor.factor_names == list(dataset.space.names)
    assert not editor.method.training
    assert not any(weight.requires_grad for weight in editor.method.parameters())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda weight: None, 'Missing key(s) in state_dict: "encoder.convolutions.0.weight"'),
        (lambda weight: weight[..., :2], "size mismatch for encoder.convolutions.0.weight"),
        # An encoder of grey images beside a first stage of coloured ones: neither fits the other.
        (lambda weight: weight[:, :1], "size mismatch for encoder.convolutions.0.weight"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    checkpoint: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor | None], found: str
) -> None:
    opened = open_checkpoint(checkpoint)
    weights = opened.weights()
    weight = change(weights.pop("encoder.convolutions.0.weight"))
    if weight is not None:
        weights["encoder.convolutions.0.weight"] = weight
    write_checkpoint(
        tmp_path / "c",
        config=opened.config,
        weights=weights,
        metrics={},
        training=None,
        data_name="shapes3d_procedural",
        data_fingerprint="f",
        images_seen=1,
    )
    with pytest.raises(CheckpointError, match=rf"its weights do not fit its config\.json \(.*{re.escape(found)}"):
        Editor.open(tmp_path / "c")


def test_a_damaged_checkpoint_is_not_opened(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tree = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(tree | {"loss": 0.0}))
    with pytest.raises(CheckpointError, match=r"metrics\.json is damaged"):
        Editor.open(folder)


def test_a_registered_model_is_opened_by_its_name(
    checkpoint: Path, images: np.ndarray, editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    registry = Registry(LocalStore(tmp_path / "runs"))
    registry.set_alias("mine", "best", registry.register(open_checkpoint(checkpoint), "mine"))
    expected = editor.encode(images).units
    for name in ("mine@best", "mine@1"):
        opened = Editor.open(name, storage=str(tmp_path / "runs"))
        assert (opened.encode(images).units == expected).all()
    monkeypatch.chdir(tmp_path)  # `runs` of the working directory is where commands keep their results
    assert (Editor.open("mine@best").encode(images).units == expected).all()
    with pytest.raises(RegistryError, match="no model mine@nightly"):
        Editor.open("mine@nightly")
