from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raydis.checkpoint.open import open_checkpoint
from raydis.editor.editor import Editor
from raydis.editor.sampling import Sampling
from raydis.errors import CheckpointError, EditError
from raydis.registry import ModelRef, Registry
from raydis.serve.model import Drawing, ServedModel, default_batch_sizes, open_model
from raydis.store import open_store

CODES = np.zeros((4, 8), np.float32)  # of units that are scalars, whose codes have no influence


def test_an_encoding_has_the_same_bytes_alone_and_among_any_others(served: ServedModel, pictures: np.ndarray) -> None:
    alone = [served.encode([picture])[0] for picture in pictures]
    for mates in (served.encode(list(pictures)), served.encode(list(pictures[::-1]))[::-1]):
        for one, other in zip(alone, mates, strict=True):
            assert one.units.tobytes() == other.units.tobytes()
            assert set(one.facts) == set(other.facts) == {"component", "responsibility"}
            for name, values in one.facts.items():
                assert values.tobytes() == other.facts[name].tobytes()


def test_a_drawing_has_the_same_bytes_alone_and_among_any_others(served: ServedModel) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 4)).astype(np.float32)
    drawings = [Drawing(units, CODES, seed, Sampling(5, "unipc")) for seed, units in enumerate(rows)]
    alone = [served.draw([drawing])[0] for drawing in drawings]
    assert len({picture.tobytes() for picture in alone}) == 9
    for mates in (served.draw(drawings), served.draw(drawings[::-1])[::-1]):
        assert [picture.tobytes() for picture in mates] == [picture.tobytes() for picture in alone]


def test_a_drawing_that_keeps_details_has_the_same_bytes_alone_and_among_any_others(
    served: ServedModel, pictures: np.ndarray
) -> None:
    codes = served.encode(list(pictures))
    how = Sampling(5, "ddim")
    drawings = [Drawing(code.units, code.codes, 0, how, picture) for code, picture in zip(codes, pictures, strict=True)]
    alone = [served.draw([drawing])[0] for drawing in drawings]
    assert len({picture.tobytes() for picture in alone}) == 9
    mates = served.draw(drawings)
    assert [picture.tobytes() for picture in mates] == [picture.tobytes() for picture in alone]
    edited = served.editor.edit(pictures, steps=5, keep_details=True)
    assert np.abs(np.stack(mates) - edited.astype(int)).max() <= 1  # other batch sizes round otherwise


def test_only_drawings_of_equal_steps_samplers_and_starts_share_a_batch() -> None:
    units, picture = np.zeros(4, np.float32), np.zeros((16, 16, 3), np.uint8)
    drawings = [
        Drawing(units, CODES, 0, Sampling(5, "ddim")),
        Drawing(units, CODES, 0, Sampling(6, "ddim")),
        Drawing(units, CODES, 0, Sampling(5, "unipc")),
        Drawing(units, CODES, 0, Sampling(5, "ddim"), picture),
    ]
    assert len({drawing.batch_key for drawing in drawings}) == 4
    assert drawings[0].batch_key == Drawing(units + 1, CODES, 3, Sampling(5, "ddim")).batch_key
    assert drawings[3].batch_key == Drawing(units + 1, CODES, 3, Sampling(5, "ddim"), picture + 1).batch_key


def test_a_served_encoding_agrees_with_the_editors(served: ServedModel, pictures: np.ndarray) -> None:
    codes = served.encode(list(pictures))
    np.testing.assert_allclose([each.units for each in codes], served.editor.encode(pictures).units, atol=1e-5)


def test_batch_sizes_follow_the_device_unless_they_are_given(editor: Editor, served: ServedModel) -> None:
    assert ServedModel(editor, served.ref).batch_sizes == default_batch_sizes(torch.device("cpu")) == (8, 4)
    assert ServedModel(editor, served.ref, edit_batch_size=2).batch_sizes == (8, 2)
    assert default_batch_sizes(torch.device("cuda")) == (64, 16)


@pytest.mark.parametrize("steps", [0, 201])
def test_steps_out_of_range_are_refused_with_the_range(served: ServedModel, steps: int) -> None:
    with pytest.raises(EditError, match=f"steps={steps} is out of range: this model draws in 1 to 200 steps"):
        served.sampling(steps, None, keep_details=False)


def test_an_unknown_version_is_refused(registry: Registry) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint in .*/registry/tiny/versions/2: there is no manifest.* another version of a model",
    ):
        open_model(registry, ModelRef("tiny", 2))


def test_the_identity_of_a_model_changes_with_its_content_and_with_its_number(
    registry: Registry, checkpoint: Path, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    first = open_model(registry, ModelRef("tiny", 1)).identity
    assert first.startswith("tiny@1 ")
    assert open_model(registry, ModelRef("tiny", 1)).identity == first
    registry.register(open_checkpoint(write_tiny(tmp_path / "second", seed=2)), "again")
    registry.register(open_checkpoint(checkpoint), "again")
    assert open_model(registry, ModelRef("again", 2)).identity == first.replace("tiny@1", "again@2")
    elsewhere = Registry(open_store(str(tmp_path / "others")))
    elsewhere.register(open_checkpoint(write_tiny(tmp_path / "other", seed=1)), "tiny")
    other = open_model(elsewhere, ModelRef("tiny", 1)).identity
    assert other.startswith("tiny@1 ")
    assert other != first


def test_weights_that_are_not_finite_are_refused_by_name(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.convolutions.0.weight"][0, 0, 0, 0] = torch.nan

    registry.register(open_checkpoint(write_tiny(tmp_path / "spoilt", spoil=spoil)), "tiny")
    with pytest.raises(CheckpointError, match=r"tiny@2 cannot be served: .*convolutions\.0\.weight are not finite"):
        open_model(registry, ModelRef("tiny", 2))


def test_a_model_whose_answers_would_depend_on_other_requests_is_refused(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path / "coupled", mode="release")
    registry.register(open_checkpoint(folder), "tiny")
    with pytest.raises(CheckpointError, match=r"tiny@2 cannot be served: .*depend on the other images of the batch"):
        open_model(registry, ModelRef("tiny", 2))
    assert Editor.open(folder).encode(np.zeros((1, 16, 16, 3), np.uint8)).units.shape == (1, 4)
