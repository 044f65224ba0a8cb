"""What every method owes to the engine and to the editor. A new method joins by one line of METHODS."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydis.build import build_method
from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.config import EvaluationConfig, RunConfig
from raydis.config.presets import expand
from raydis.config.run import PRETRAINED
from raydis.data import Loader, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.data.pixels import normalise
from raydis.editor.editor import Editor
from raydis.engine.evaluate import encode_images
from raydis.engine.fit import fit
from raydis.engine.group import Workers
from raydis.engine.reconstruction import measure_reconstruction
from raydis.engine.session import run_session
from raydis.engine.state import Progress, Training
from raydis.errors import CheckpointError, EditError, MetricError
from raydis.methods.contract import Batch, FactorTable, Method, UnitMethod
from raydis.metrics.reconstruction import psnr
from raydis.metrics.telling import UnitLabel
from tests.double import ROUNDING, double_precision

CPU = torch.device("cpu")
BATCH_SIZE, NUM_IMAGES, FIRST_REPORT = 32, 160, 96
Tensors = dict[str, Tensor]

# No dropped channels, which are each worker's own, and no mixture for which of several optima EM finds can hang on
# rounding.
UNET = {"dropout_rate": 0.0, "skip_dropout_rate": 0.0}
PLAIN_UNET = {"model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "attention_sizes": [4], "num_heads": 2}
ANCHORS = {"mode": "constant", "refit_images": 64, "num_gaussians": 1, "num_splits": 0}
NETWORK = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "latent_dim": 3}
SMALL_LATENTS = ("dyga_sd", "encdiff", "disdiff", "unconditional_diffusion")  # to be quick
# By kind, or by any name if the settings contain a kind.
METHODS: dict[str, dict[str, Any]] = {
    "dyga_sd": {"unet": UNET, "anchors": ANCHORS},
    "encdiff": {
        "kind": "dyga_sd",
        "encoder": {"kind": "residual", "model_dim": 8, "norm": "group", "token_hidden_dims": [8]},
        "unet": UNET,
        "anchors": {"mode": "off"},
    },
    "beta_vae": {"num_units": 4, "hidden_dim": 16},
    "annealed_vae": {"num_units": 4, "hidden_dim": 16},
    "dip_vae_i": {"num_units": 4, "hidden_dim": 16},
    "dip_vae_ii": {"num_units": 4, "hidden_dim": 16},
    "beta_tcvae": {"num_units": 4, "hidden_dim": 16},
    "factor_vae": {"num_units": 4, "hidden_dim": 16, "discriminator_dims": [8, 8]},
    "proto_vae": {"num_units": 4, "hidden_dim": 16, "embedding_dim": 8, "min_kl": 0.0},
    # A unit opens in each step.
    "dot_vae": {"num_units": 4, "hidden_dim": 16, "pretraining_share": 0.0, "unlock_share": 0.2, "min_kl": 0.0},
    "cs_dismo": {"content_dim": 6, "style_dim": 3, "hidden_dim": 16, "channels": [8, 8, 8]},
    "pca_ica": {"num_units": 4},
    "disdiff": {
        "num_units": 4,
        "unit_dim": 3,
        "encoder": {"model_dim": 8, "norm": "group"},
        "concept_dim": 8,
        "pretrained": {"unet": PLAIN_UNET},
    },
    "unconditional_diffusion": {"unet": PLAIN_UNET},
    "ae_ica": {"num_units": 4, "hidden_dim": 16},
    "iso_ae_ica": {"num_units": 4, "hidden_dim": 16},
    "hlle_ica": {"num_units": 4, "hidden_dim": 16, "num_neighbors": 40},
    "vq": {**NETWORK, "num_embeddings": 16, "discriminator_weight": 0.5, "discriminator_channels": [8]},
    "kl": NETWORK,
}


class Unlabelled(ArrayDataset):
    """Images whose labels may not be touched."""

    def factors(self, indices: np.ndarray) -> np.ndarray:
        raise AssertionError("training looked at the labels")


def config_of(kind: str, **sections: Any) -> RunConfig:
    train = {"batch_size": BATCH_SIZE, "num_images": NUM_IMAGES, "report_images": FIRST_REPORT}
    return RunConfig.model_validate(
        expand(
            {
                "preset": "tiny",
                "first_stage": {"kind": "patch_pca" if kind in SMALL_LATENTS else "pixel"},
                "method": {"kind": kind, **METHODS[kind]},
                "train": {**train, "checkpoint_images": FIRST_REPORT, "max_grad_norm": 1.0},
                "evaluation": {"protocol": "none"},
                **sections,
            }
        )
    )


KINDS = pytest.mark.parametrize("kind", METHODS)
UNIT_KINDS = pytest.mark.parametrize("kind", [kind for kind in METHODS if config_of(kind).method.scored])
STAGE_KINDS = pytest.mark.parametrize("kind", [kind for kind in METHODS if not config_of(kind).method.scored])
BUILT = {kind: build_method(config_of(kind), 3) for kind in METHODS}  # to select by, not to test
MOVING_KINDS = pytest.mark.parametrize("kind", [kind for kind, method in BUILT.items() if method.moves])
DRAWING_KINDS = pytest.mark.parametrize(
    "kind", [kind for kind, method in BUILT.items() if method.draw(1, torch.Generator())]
)


@functools.cache
def dataset() -> Unlabelled:
    """The tiny preset's 324 images of 16 px."""
    found = open_dataset(config_of("beta_vae").data)
    assert isinstance(found, ArrayDataset)
    return Unlabelled(found.name, found.array, found.space, fingerprint=found.fingerprint)


def pictures(count: int = 6, first: int = 0) -> np.ndarray:
    """Images spread over the data set, uint8 (count, 16, 16, 3)."""
    return dataset().images(first + np.arange(count) * 50)


def wake(method: Method, seed: int = 0) -> None:
    """Draw weights that keep signals as large as they come in.

    Fresh networks answer to hardly anything (a U-Net ends in zeros), and five steps change little about that.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in method.parameters():
        if weight.requires_grad and weight.dim() > 1:
            nn.init.kaiming_normal_(weight, generator=generator)


def make(kind: str, seed: int = 0) -> Method:
    """A method that was started on the images and not trained."""
    torch.manual_seed(seed)
    method = build_method(config_of(kind), 3)
    wake(method, seed)
    images = normalise(torch.from_numpy(dataset().images(np.arange(NUM_IMAGES))))
    method.start(images.split(64), torch.Generator().manual_seed(seed))
    return method


def make_fitted(kind: str) -> UnitMethod:
    """A method in eval mode that was started and, if it ever is, refitted."""
    method = make(kind)
    assert isinstance(method, UnitMethod)
    if method.refit_images is not None:
        images = normalise(torch.from_numpy(dataset().images(np.arange(NUM_IMAGES))))
        assert method.refit(images.split(64), torch.Generator().manual_seed(0)) == {}
    return method.eval()


def batch_of(method: Method, count: int = 8) -> Batch:
    images = normalise(torch.from_numpy(dataset().images(np.arange(2 * count) * 20)))
    others = images[count:] if method.second_batch else None
    return Batch(images[:count], method.draw(count, torch.Generator().manual_seed(0)), others)


@functools.cache
def lent(kind: str) -> Path:
    """A checkpoint of a method that other methods borrow, which holds the same weights in every process."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    weights = make(kind).state_dict()
    torch.set_default_dtype(dtype)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_checkpoint(
        folder / kind,
        config=config_of(kind),
        weights=weights,
        metrics={},
        training=None,
        data_name=dataset().name,
        data_fingerprint=dataset().fingerprint,
        images_seen=0,
    )
    return folder / kind


def start(config: RunConfig, **place: int) -> Training:
    if config.method.borrowed is not None:
        config = config.with_checkpoints({PRETRAINED: str(lent(config.method.borrowed.kind))})
    training = Training(config, dataset(), device=CPU, workers=Workers(**place))
    wake(training.method)
    return training


def everything(training: Training) -> Tensors:
    """All tensors that a run has made so far."""
    average = {f"average.{name}": tensor for name, tensor in training.calibrated().state_dict().items()}
    return {name: tensor.clone() for name, tensor in (training.state().tensors | average).items()}


def without_speed(progress: Progress) -> Progress:
    return replace(progress, images_per_s=0.0, train_s=0.0, refit_s=0.0)


@dataclass
class Whole:
    """A run that was never interrupted, its first checkpoint and its last."""

    config: RunConfig
    progress: list[Progress]
    first: Path
    last: Path
    final: Tensors


@pytest.fixture(scope="session")
def run_whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Trains a method of METHODS once."""

    @functools.cache
    def run(kind: str) -> Whole:
        folder, config, progress = tmp_path_factory.mktemp(kind), config_of(kind), list[Progress]()
        (folder / "work").mkdir()
        training, last = start(config), None
        for report in run_session(training, folder / "work"):
            progress.append(report.progress)
            last = report.checkpoint or last
            if len(progress) == 1:  # which a later checkpoint may replace
                assert report.checkpoint is not None
                shutil.copytree(report.checkpoint, folder / "first")
        assert last is not None
        return Whole(config, progress, folder / "first", last, everything(training))

    return run


@pytest.fixture(scope="session")
def open_editor(run_whole: Callable[[str], Whole]) -> Callable[[str], Editor]:
    """Opens the checkpoint of a trained method."""
    return functools.cache(lambda kind: Editor.open(run_whole(kind).last))


# ---- a method before the engine


@KINDS
def test_moves_have_names_of_their_own_and_weights_of_the_method(kind: str) -> None:
    method = make(kind)
    names = [move.name for move in method.moves]
    assert len(set(names)) == len(names)
    ours = {id(weight) for weight in method.parameters() if weight.requires_grad}
    for move in method.moves:
        assert move.weights
        assert {id(weight) for weight in move.weights} <= ours
    assert {id(module) for module in method.averaged_modules} <= {id(module) for module in method.modules()}


@DRAWING_KINDS
def test_draws_have_a_row_an_image_and_repeat_with_their_generator(kind: str) -> None:
    method = make(kind)
    first, again, other = (method.draw(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, drawn in first.items():
        assert len(drawn) == 5
        assert torch.equal(drawn, again[name])
        assert not torch.equal(drawn, other[name])


@MOVING_KINDS
def test_a_moves_losses_are_finite_scalars_that_reach_all_its_weights(kind: str) -> None:
    method = make(kind)
    batch = batch_of(method)
    for move in method.moves:
        method.zero_grad()
        losses = method(batch, move.name)
        assert all(loss.shape == () and bool(loss.isfinite()) for loss in losses.values())
        losses["loss"].backward()
        for weight in move.weights:
            assert weight.grad is not None
            assert bool(weight.grad.isfinite().all())


@MOVING_KINDS
def test_a_loss_is_the_mean_of_its_parts_unless_the_move_couples_images(kind: str) -> None:
    with double_precision(), torch.no_grad():
        method = make(kind)
        batch = batch_of(method)
        for move in method.moves:
            if move.couples:  # the method's own tests show how its images are coupled
                continue
            whole, parts = method(batch, move.name), [method(part, move.name) for part in batch.split(2)]
            for name, loss in whole.items():
                if move.couples and name != "loss":  # one of its terms may be a mean
                    continue
                mean = sum(float(part[name]) for part in parts) / 2
                assert float(loss) == pytest.approx(mean, rel=1e-10, abs=1e-10), name


@KINDS
def test_a_state_dict_holds_all_that_changes_the_results(kind: str) -> None:
    ours, theirs = make(kind).eval(), make(kind, seed=1).eval()
    images = normalise(torch.from_numpy(pictures()))

    def results(method: Method) -> Tensor:
        if isinstance(method, UnitMethod):
            return method.encode(images)
        if (reconstructed := method.reconstruct(images)) is not None:
            return reconstructed
        return method(batch_of(method), method.moves[0].name)["loss"]

    assert not torch.equal(results(ours), results(theirs))
    theirs.load_state_dict({name: tensor.clone() for name, tensor in ours.state_dict().items()})
    assert torch.equal(results(ours), results(theirs))


@UNIT_KINDS
def test_units_codes_and_images_have_the_promised_shapes(kind: str) -> None:
    method = make(kind).eval()
    assert isinstance(method, UnitMethod)
    images = normalise(torch.from_numpy(pictures()))
    units = method.units(images)
    codes = method.encode(images)
    assert units.shape == (6, method.num_units)
    assert codes.shape == (6, method.num_units, method.unit_dim)
    assert max(method.unit_widths) == method.unit_dim
    assert len(method.unit_widths) == method.num_units
    assert not any(bool(codes[:, unit, width:].any()) for unit, width in enumerate(method.unit_widths))
    assert method.units_are_vectors or torch.equal(codes, method.lift(units))
    assert torch.equal(codes, method.write(codes, units))
    assert torch.equal(codes, method.encode(images))
    assert all(torch.equal(*pair) for pair in zip(method.represent(images), (units, codes), strict=True))
    noise = None if method.noise_shape is None else torch.randn(6, *method.noise_shape)
    sampling = (None, None) if method.max_steps is None else (2, "ddim")
    drawn = method.decode(codes, noise, *sampling)
    assert drawn.shape == images.shape
    assert float(drawn.min()) >= -1.0
    assert float(drawn.max()) <= 1.0
    assert torch.equal(drawn, method.decode(codes, noise, *sampling))
    assert not torch.equal(drawn, method.decode(codes.flip(0), noise, *sampling))
    assert all(values.shape == units.shape for values in method.facts(units).values())
    assert all(len(counts) == method.num_units for counts in method.unit_counts().values())


@UNIT_KINDS
def test_an_images_units_and_codes_do_not_depend_on_the_others_of_its_batch(kind: str) -> None:
    method = make_fitted(kind)
    assert not method.couples_codes
    images, others = (normalise(torch.from_numpy(pictures(first=first))) for first in (0, 7))
    mixed = torch.cat([images[:1], others[1:]])
    assert torch.equal(method.units(images)[0], method.units(mixed)[0])
    assert torch.equal(method.encode(images)[0], method.encode(mixed)[0])
    with double_precision():  # a batch of another size sums in another order
        method = make_fitted(kind)
        images = normalise(torch.from_numpy(pictures()))
        torch.testing.assert_close(method.units(images[:1]), method.units(images)[:1], rtol=0, atol=1e-10)
        torch.testing.assert_close(method.encode(images[:1]), method.encode(images)[:1], rtol=0, atol=1e-10)


@UNIT_KINDS
def test_a_method_says_in_words_why_it_cannot_be_scored_yet(kind: str, open_editor: Callable[[str], Editor]) -> None:
    for method in (make(kind), open_editor(kind).method):
        assert isinstance(method, UnitMethod)
        reason = method.not_ready()
        assert reason is None or (type(reason) is str and reason)


# ---- a run


@KINDS
def test_a_run_ends_with_finite_losses_and_is_well(kind: str, run_whole: Callable[[str], Whole]) -> None:
    progress = run_whole(kind).progress
    assert [each.finished for each in progress] == [False] * (len(progress) - 1) + [True]
    assert progress[-1].images_seen == NUM_IMAGES
    for each in progress:
        assert bool(each.losses) == bool(make(kind).moves)
        assert np.isfinite(list(each.losses.values())).all()
        assert all(type(count) is int and count == 0 for count in each.health.values())


def test_a_run_reports_the_counts_of_its_method(run_whole: Callable[[str], Whole]) -> None:
    assert [each.health for each in run_whole("dyga_sd").progress] == [{"num_unanchored_units": 0}] * 3


@KINDS
def test_a_resumed_run_equals_one_that_was_never_interrupted(kind: str, run_whole: Callable[[str], Whole]) -> None:
    whole = run_whole(kind)
    training = start(whole.config)
    torch.manual_seed(12345)  # another process has another global generator
    training.resume(open_checkpoint(whole.first))
    rest = [without_speed(progress) for progress in fit(training)]
    # A finished run reports its end once more when it is scored.
    assert rest == [replace(without_speed(each), finished=True) for each in whole.progress[1:-1]]
    found = everything(training)
    assert found.keys() == whole.final.keys()
    assert [name for name, tensor in whole.final.items() if not torch.equal(found[name], tensor)] == []


@UNIT_KINDS
def test_a_finished_method_knows_the_range_of_every_unit(kind: str, run_whole: Callable[[str], Whole]) -> None:
    quantiles = run_whole(kind).final["average.unit_quantiles"]
    assert bool(quantiles.isfinite().all())
    assert bool((quantiles.diff(dim=1) >= 0).all())
    assert bool((quantiles[:, 0] < quantiles[:, -1]).all())


@UNIT_KINDS
def test_a_diagnosis_has_a_row_a_unit_and_is_the_same_from_a_checkpoint(
    kind: str, open_editor: Callable[[str], Editor]
) -> None:
    method = open_editor(kind).method
    images, names = normalise(torch.from_numpy(pictures())), ("shape", "hue")
    table = FactorTable(names, np.stack([np.arange(6) % 2, np.arange(6) % 3], axis=1))
    told, unknown = UnitLabel("factor", (("hue", 0.5),)), UnitLabel("unknown")
    known: tuple[tuple[FactorTable | None, UnitLabel], ...] = ((table, told), (None, unknown))
    for factors, label in known:
        labels = (label,) * method.num_units
        found = method.diagnose(images.split(4), factors, labels)
        if found is None:
            continue
        assert len(found.rows) == method.num_units
        assert len(found.panels) in (0, method.num_units)
        assert all(len(row) == len(found.columns) for row in found.rows)
        stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert method.read_diagnosis(stored, labels) == found


# ---- parts of a batch, and workers that share one


def train(kind: str, max_batch_size: int | None = None, **place: int) -> Tensors:
    """All tensors of a finished run in float64, and its losses."""
    with double_precision():
        training = start(config_of(kind, compute={"max_batch_size": max_batch_size}), **place)
        losses = [progress.losses for progress in fit(training)][-1]
        return everything(training) | {f"loss.{name}": torch.tensor(loss) for name, loss in losses.items()}


def work_as_one_of_two(rank: int) -> Tensors:
    """Every method in two workers, each of which takes its 16 images in parts of 8."""
    return {
        f"{kind}/{name}": tensor
        for kind in METHODS
        for name, tensor in train(kind, max_batch_size=8, rank=rank, world_size=2).items()
    }


@pytest.fixture(scope="module")
def pair(run_in_two_workers: Callable[[str, str], tuple[Tensors, Tensors]]) -> tuple[Tensors, Tensors]:
    """What each of two workers returns of `work_as_one_of_two`."""
    return run_in_two_workers(__file__, "work_as_one_of_two")


@pytest.fixture(scope="session")
def alone() -> Callable[[str], Tensors]:
    """Trains a method in one worker, which takes its batch at once."""
    return functools.cache(lambda kind: train(kind))


def assert_equal_up_to_rounding(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype != torch.float32 or name.endswith(".step"), name  # AdamW's counts
        largest = float(tensor.double().abs().nan_to_num(posinf=0.0).max())
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=ROUNDING * max(largest, 1.0), msg=lambda text, name=name: name + text
        )


@KINDS
def test_parts_equal_the_whole(kind: str, alone: Callable[[str], Tensors]) -> None:
    assert_equal_up_to_rounding(train(kind, max_batch_size=8), alone(kind))


@KINDS
def test_two_workers_equal_one(kind: str, alone: Callable[[str], Tensors], pair: tuple[Tensors, Tensors]) -> None:
    first, second = (
        {name.removeprefix(f"{kind}/"): tensor for name, tensor in found.items() if name.startswith(f"{kind}/")}
        for found in pair
    )
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
    assert_equal_up_to_rounding(first, alone(kind))


# ---- a finished method in the editor


def sampling_of(editor: Editor) -> dict[str, Any]:
    """A short way to draw, where the model samples."""
    return {} if editor.max_steps is None else {"steps": 2}


@UNIT_KINDS
def test_editing_nothing_reconstructs(kind: str, open_editor: Callable[[str], Editor]) -> None:
    editor, images = open_editor(kind), pictures()
    sampling = sampling_of(editor)
    encoded, last = editor.encode(images), editor.num_units - 1
    units, codes = encoded.units, encoded.codes
    reconstructed = editor.edit(images, **sampling)
    assert reconstructed.dtype == np.uint8
    assert reconstructed.shape == images.shape
    assert np.array_equal(reconstructed, editor.decode(units, codes=codes, **sampling))
    assert np.array_equal(reconstructed[:1], editor.edit(images[:1], set={last: float(units[0, last])}, **sampling))
    assert np.array_equal(reconstructed, editor.edit(images, shift={0: 0.0, last: 0.0}, **sampling))
    assert not np.array_equal(reconstructed, editor.edit(images, shift={0: 50.0, 1: 50.0}, **sampling))


@UNIT_KINDS
def test_a_run_can_measure_its_reconstructions(kind: str, open_editor: Callable[[str], Editor]) -> None:
    method, loader = open_editor(kind).method, Loader(dataset(), batch_size=1, seed=0)
    found = measure_reconstruction(method, loader, EvaluationConfig(num_reconstructions=3))
    images = loader.gather(np.array([0, 161, 323]))
    noise = None
    if method.noise_shape is not None:
        noise = torch.randn(3, *method.noise_shape, generator=torch.Generator().manual_seed(0))
    sampling = (None, None) if method.default_steps is None else (method.default_steps, "unipc")
    drawn = method.decode(method.encode(images), noise, *sampling)
    expected = psnr(images.numpy(), drawn.detach().float().numpy(), peak=2.0).mean()
    assert found is not None or method.not_ready() is not None
    assert found is None or found.psnr == pytest.approx(expected, abs=1e-3)


@UNIT_KINDS
def test_swapping_no_unit_keeps_the_source_and_swapping_all_takes_the_target(
    kind: str, open_editor: Callable[[str], Editor]
) -> None:
    editor, source, target = open_editor(kind), pictures(first=0), pictures(first=9)
    sampling, every = sampling_of(editor), list(range(open_editor(kind).num_units))
    assert not np.array_equal(editor.edit(source, **sampling), editor.edit(target, **sampling))
    assert np.array_equal(editor.swap(source, target, [], **sampling), editor.edit(source, **sampling))
    assert np.array_equal(editor.swap(source, target, every, **sampling), editor.edit(target, **sampling))
    assert np.array_equal(editor.swap(source, source, every[::2], **sampling), editor.edit(source, **sampling))
    half = len(every) // 2
    there = editor.swap(source, target, every[:half], **sampling)
    assert np.array_equal(there, editor.swap(target, source, every[half:], **sampling))  # the other way round
    encoded = editor.encode(np.stack([source[0], source[0]]))  # two images, as `swap_each` encodes
    units, codes = (np.repeat(each[:1], len(every), axis=0) for each in (encoded.units, encoded.codes))
    assert np.array_equal(
        editor.swap_each(source[0], source[0], **sampling), editor.decode(units, codes=codes, **sampling)
    )


@UNIT_KINDS
def test_scalars_alone_are_drawn_unless_units_are_vectors(kind: str, open_editor: Callable[[str], Editor]) -> None:
    editor = open_editor(kind)
    units, sampling = editor.encode(pictures()).units, sampling_of(editor)
    if editor.method.units_are_vectors:
        with pytest.raises(EditError, match=r"the units of this model are vectors, .* give the codes of `encode` too"):
            editor.decode(units, **sampling)
    else:
        assert np.array_equal(editor.decode(units, **sampling), editor.edit(pictures(), **sampling))


@UNIT_KINDS
def test_a_traversal_has_a_row_a_unit_and_starts_each_at_the_same_image(
    kind: str, open_editor: Callable[[str], Editor]
) -> None:
    editor = open_editor(kind)
    drawn = editor.traverse(pictures(1)[0], num_values=3, **sampling_of(editor))
    assert drawn.shape == (editor.num_units, 3, *editor.image_shape)
    assert [unit.index for unit in editor.units()] == list(range(editor.num_units))


@UNIT_KINDS
def test_what_a_method_cannot_do_is_refused_in_plain_words(kind: str, open_editor: Callable[[str], Editor]) -> None:
    editor, images = open_editor(kind), pictures(1)
    default = editor.method.default_steps
    assert (default is None) == (editor.max_steps is None)
    if editor.max_steps is not None:
        assert default is not None
        assert 1 <= default <= editor.max_steps
        with pytest.raises(EditError, match=rf"steps={editor.max_steps + 1} is out of range: this model draws in 1 to"):
            editor.edit(images, steps=editor.max_steps + 1)
        return
    encoded = editor.encode(images)
    units, codes = encoded.units, encoded.codes
    takes_noise = editor.method.noise_shape is not None
    options: dict[str, dict[str, Any]] = {"steps": {"steps": 5}, "sampler": {"sampler": "ddim"}}
    for name, option in options.items():
        words = "a single pass" if takes_noise else "a single pass, without noise"
        with pytest.raises(EditError, match=f"draws in {words}: leave {name} out"):
            editor.edit(images, **option)
        with pytest.raises(EditError, match=f"leave {name} out"):
            editor.decode(units, codes=codes, **option)
    if takes_noise:
        return
    calls = (
        lambda: editor.edit(images, keep_details=True),
        lambda: editor.swap(images, images, [0], keep_details=True),
        lambda: editor.swap_each(images[0], images[0], keep_details=True),
        lambda: editor.traverse(images[0], keep_details=True),
        lambda: editor.details(images),
        lambda: editor.decode(units, codes=codes, details=np.zeros((1, 3, 16, 16), np.float32)),
    )
    for call in calls:
        with pytest.raises(EditError, match="without noise: leave keep_details out"):
            call()
    with pytest.raises(EditError, match="leave steps and sampler and keep_details out"):
        editor.edit(images, steps=5, sampler="ddim", keep_details=True)
    assert np.array_equal(editor.edit(images, seed=1), editor.edit(images, seed=2))


@UNIT_KINDS
def test_a_residual_is_that_of_a_seed_or_of_the_image(kind: str, open_editor: Callable[[str], Editor]) -> None:
    editor, source, target = open_editor(kind), pictures(), pictures(first=9)
    if editor.max_steps is not None or editor.method.noise_shape is None:
        return
    units, details = editor.encode(source).units, editor.details(source)
    assert details.shape == (len(source), *editor.method.noise_shape)
    kept = editor.edit(source, keep_details=True)
    assert np.array_equal(kept, editor.decode(units, details=details))
    assert np.array_equal(kept, editor.edit(source, keep_details=True, seed=1))
    assert not np.array_equal(editor.edit(source, seed=1), editor.edit(source, seed=2))
    every = list(range(editor.num_units))
    swapped = editor.swap(source, target, every, keep_details=True)
    assert np.array_equal(swapped, editor.decode(editor.encode(target).units, details=details))
    assert not np.array_equal(swapped, editor.edit(target, keep_details=True))


@STAGE_KINDS
def test_a_method_without_units_says_so_and_a_first_stage_reconstructs(
    kind: str, run_whole: Callable[[str], Whole]
) -> None:
    with pytest.raises(CheckpointError, match="holds a model without units, for other runs"):
        Editor.open(run_whole(kind).last)
    method = make(kind).eval()
    with pytest.raises(MetricError, match=r"has no units to score: set evaluation\.protocol=none"):
        encode_images(method, start(config_of(kind)).loader, np.arange(4))
    images = normalise(torch.from_numpy(pictures()))
    reconstructed = method.reconstruct(images)
    assert (reconstructed is None) is config_of(kind).method.uses_first_stage
    assert reconstructed is None or reconstructed.shape == images.shape
