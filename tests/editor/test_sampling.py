"""How many steps and which sampler a drawing takes, by what was asked for and by what the model is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from raydis.diffusion import samplers
from raydis.diffusion.denoising import Denoising
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.errors import EditError
from raydis.methods.contract import UnitMethod


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, (20, "unipc")),
        ({"steps": 1000, "sampler": "dpmpp_2m"}, (1000, "dpmpp_2m")),
        ({"keep_details": True}, (20, "ddim")),
        ({"steps": 3, "sampler": "ddim", "keep_details": True}, (3, "ddim")),
    ],
)
def test_what_is_not_asked_for_has_a_default(asked: dict[str, Any], chosen: tuple[int, str]) -> None:
    assert choose_sampling(1000, **({"steps": None, "sampler": None} | asked)) == Sampling(*chosen)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 0}, "steps=0 is out of range: this model draws in 1 to 1000 steps"),
        ({"steps": 1001}, "steps=1001 is out of range: this model draws in 1 to 1000 steps"),
        ({"sampler": "euler"}, "unknown sampler euler: use ddim, dpmpp_2m, dpmpp_2m_karras, unipc"),
        ({"sampler": "unipc", "keep_details": True}, "sampler=unipc cannot keep details: only ddim is inverted"),
    ],
)
def test_what_a_model_cannot_do_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        choose_sampling(1000, **({"steps": None, "sampler": None} | asked))


def test_a_model_that_draws_in_a_single_pass_is_asked_for_nothing() -> None:
    assert choose_sampling(None, None, None) == Sampling(None, None)
    for asked, named in (
        ({"steps": 20}, "steps"),
        ({"sampler": "unipc"}, "sampler"),
        ({"keep_details": True}, "keep_details"),
        ({"steps": 1, "keep_details": True}, "steps and keep_details"),
    ):
        with pytest.raises(EditError, match=f"draws in a single pass, without noise: leave {named} out"):
            choose_sampling(None, **({"steps": None, "sampler": None} | asked))


def test_a_model_that_draws_a_residual_in_a_single_pass_can_keep_that_of_an_image() -> None:
    assert choose_sampling(None, None, None, keep_details=True, takes_noise=True) == Sampling(None, None)
    with pytest.raises(EditError, match="this model draws in a single pass: leave steps out"):
        choose_sampling(None, 1, None, keep_details=True, takes_noise=True)


def test_the_model_s_own_number_of_steps_is_the_default_unless_details_are_kept() -> None:
    assert choose_sampling(1000, None, None, default_steps=1) == Sampling(1, "unipc")
    assert choose_sampling(1000, None, None, default_steps=1, keep_details=True) == Sampling(20, "ddim")
    assert choose_sampling(10, None, None, default_steps=1, keep_details=True) == Sampling(10, "ddim")
    assert choose_sampling(1000, 7, None, default_steps=1) == Sampling(7, "unipc")


@pytest.mark.parametrize(("most", "steps"), [(1000, 7), (5, 5)])
def test_a_request_a_denoising_network_and_a_method_have_one_usual_number_of_steps(
    monkeypatch: pytest.MonkeyPatch, most: int, steps: int
) -> None:
    monkeypatch.setattr(samplers, "DEFAULT_STEPS", 7)
    assert choose_sampling(most, None, None) == Sampling(steps, "unipc")
    assert Denoising(schedule="cosine", num_timesteps=most, loss="l1").default_steps == steps
    of_method = UnitMethod.default_steps.fget
    assert of_method is not None
    assert of_method(cast(UnitMethod, SimpleNamespace(max_steps=most))) == steps
