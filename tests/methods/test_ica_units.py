from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.editor.editor import Editor
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import ConfigError
from raydis.methods.contract import Method, UnitMethod
from raydis.methods.ica_units import IcaUnits
from tests.double import double_precision

LEFT_OUT = {"facts", "unit_counts", "token_cloud"}  # they describe the units before the rotation
GENERIC = {
    *("lift", "encode", "represent", "write", "unit_widths"),  # a unit is a number, and so is its code
    *("register_quantiles", "measure_quantiles", "read_diagnosis"),
}


def config_of(kind: str, rotation: str = "ica", **method: Any) -> RunConfig:
    return RunConfig.model_validate(
        expand(
            {
                "preset": "tiny",
                "method": {"kind": kind, **method},
                "units": {"rotation": rotation},
                "train": {"num_images": 96, "report_images": 96},
                "evaluation": {"protocol": "none"},
            }
        )
    )


SMALL: dict[str, dict[str, Any]] = {"dyga_sd": {}, "beta_vae": {"num_units": 4, "hidden_dim": 16}}
KINDS = pytest.mark.parametrize("kind", SMALL)


def trained(kind: str, folder: Path, rotation: str = "ica") -> tuple[Training, Path]:
    config = config_of(kind, rotation, **SMALL[kind])
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    folder.mkdir()
    checkpoint = [report.checkpoint for report in run_session(training, folder)][-1]
    assert checkpoint is not None
    return training, checkpoint


def test_whatever_a_method_can_define_is_passed_on() -> None:
    """A hook that the contract gains must be passed on as well, or be named above."""
    defined = {
        name
        for owner in (Method, UnitMethod)
        for name, member in vars(owner).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }
    assert {"start", "calibrate", "decode"} <= defined
    assert defined - set(vars(IcaUnits)) == LEFT_OUT | GENERIC
    settings = {"start_images", "refit_images", "refit_samples", "second_batch", "couples_codes"}
    method = build_method(config_of("dyga_sd"), 3)
    assert isinstance(method, IcaUnits)
    assert all(getattr(method, name) == getattr(method.inner, name) for name in settings)


@KINDS
def test_training_is_that_of_the_method_itself(kind: str, tmp_path: Path) -> None:
    rotated, plain = (trained(kind, tmp_path / rotation, rotation)[0].average for rotation in ("ica", "none"))
    assert isinstance(rotated, IcaUnits)
    theirs = plain.state_dict()
    for name, tensor in rotated.inner.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@KINDS
def test_the_units_of_a_checkpoint_are_uncorrelated_and_draw_what_the_methods_own_units_draw(
    kind: str, tmp_path: Path
) -> None:
    training, checkpoint = trained(kind, tmp_path / "run")
    editor = Editor.open(checkpoint)
    assert isinstance(editor.method, IcaUnits)
    assert editor.method.not_ready() is None
    images = training.dataset.images(np.arange(0, 324))
    units = editor.encode(images).units
    np.testing.assert_allclose(np.cov(units.T, ddof=0), np.eye(4), atol=1e-3)
    sampling: dict[str, Any] = {} if editor.max_steps is None else {"steps": 2}
    drawn = editor.edit(images[:4], **sampling)
    editor.method = editor.method.inner
    assert np.abs(editor.edit(images[:4], **sampling).astype(int) - drawn).max() <= 1  # rounding of a grey level


def test_undoing_the_rotation_gives_the_methods_own_codes() -> None:
    with double_precision():
        method = build_method(config_of("dyga_sd"), 3).eval()
        assert isinstance(method, IcaUnits)
        images = torch.rand(64, 3, 16, 16) * 2.0 - 1.0
        method.ica.fit(method.inner.units(images))
        assert method.ica.not_ready() is None
        torch.testing.assert_close(
            method.inner_codes(method.encode(images)), method.inner.encode(images), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vq", r"units\.rotation=ica rotates units, and method\.kind=vq has none: set units\.rotation=none"),
        ("pca_ica", r"units\.rotation=ica has no effect on method\.kind=pca_ica, whose units are independent"),
        ("hlle_ica", r"units\.rotation=ica has no effect on method\.kind=hlle_ica"),
    ],
)
def test_methods_without_units_or_with_independent_ones_are_refused(kind: str, message: str) -> None:
    tree = {"method": {"kind": kind}, "first_stage": {"kind": "pixel"}, "units": {"rotation": "ica"}}
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(tree | {"evaluation": {"protocol": "none"}})


def test_units_that_are_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rotates numbers, and the units of method\.kind=disdiff are vectors: set"):
        build_method(RunConfig.model_validate({"method": {"kind": "disdiff"}, "units": {"rotation": "ica"}}), 3)
