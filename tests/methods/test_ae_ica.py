from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.methods.ae_ica import AeIca, IsoAeIca
from raydis.methods.contract import Batch
from tests.double import double_precision


def built(kind: str = "ae_ica", **options: float | str) -> AeIca:
    tree = {"data": {"image_size": 16}, "method": {"kind": kind, "num_units": 3, "hidden_dim": 16, **options}}
    torch.manual_seed(0)
    method = build_method(RunConfig.model_validate(tree), 3)
    assert isinstance(method, AeIca)
    return method


def images(count: int = 300) -> Tensor:
    rng = np.random.default_rng(0)
    pixels = rng.random((count, 3)) @ rng.normal(size=(3, 3 * 16 * 16))
    return torch.from_numpy(np.tanh(pixels)).to(torch.get_default_dtype()).view(count, 3, 16, 16)


def test_folding_the_rotation_in_leaves_reconstructions_as_they_are() -> None:
    with double_precision():
        method, shown = built().eval(), images()
        before, raw = method.decode(method.encode(shown)), method.units(shown)
        method.calibrate(shown.split(100))
        assert method.not_ready() is None
        assert float((method.units(shown) - raw).abs().max()) > 0.1
        torch.testing.assert_close(method.decode(method.encode(shown)), before, rtol=0, atol=1e-5)


def test_calibrated_units_have_mean_0_and_variance_1_and_are_uncorrelated() -> None:
    with double_precision():
        method, shown = built().eval(), images()
        method.calibrate(shown.split(100))
        units = method.units(shown)
        torch.testing.assert_close(units.mean(0), torch.zeros(3), rtol=0, atol=1e-9)
        torch.testing.assert_close(units.T.cov(correction=0), torch.eye(3), rtol=0, atol=1e-9)


def test_it_is_not_ready_before_the_rotation_is_fitted_nor_if_its_codes_have_collapsed() -> None:
    method, shown = built().eval(), images()
    assert "have not been fitted to the units yet" in (method.not_ready() or "")
    with torch.no_grad():
        method.encoder.heads[0].weight.zero_()
    method.calibrate(shown.split(100))
    assert "the units have no independent components" in (method.not_ready() or "")
    assert bool(method.units(shown).isfinite().all())


def test_the_rotation_is_not_trained() -> None:
    method = built("iso_ae_ica")
    trained = {id(weight) for move in method.moves for weight in move.weights}
    assert {id(weight) for weight in method.parameters()} == trained
    assert not list(method.ica.parameters())


def test_the_loss_is_the_squared_error_of_an_image() -> None:
    method, shown = built().eval(), images(8)
    drawn = method.decoder(method.encoder(shown)[0])
    expected = (drawn - shown).square().flatten(1).sum(1).mean()
    assert method(Batch(shown, {}), "autoencoder")["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("isometry", ["relaxed", "decoder"])
def test_the_penalty_has_its_weight_and_reaches_the_decoder_alone(isometry: str) -> None:
    with double_precision():
        light = built("iso_ae_ica", isometry=isometry, isometry_weight=0.5)
        assert isinstance(light, IsoAeIca)
        batch = Batch(images(8), light.draw(8, torch.Generator().manual_seed(0)))
        losses = {name: loss.item() for name, loss in light(batch, "autoencoder").items()}
        assert losses["loss"] == pytest.approx(losses["reconstruction"] + 0.5 * losses["distortion"], rel=1e-10)
        light.distortion(light.encoder(batch.images)[0], batch.draws).backward()
        assert all(weight.grad is None for weight in light.encoder.parameters())
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in light.decoder.parameters())
