from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydis.checkpoint.open import open_checkpoint
from raydis.config import EvaluationConfig, RunConfig
from raydis.data import FactorDataset, Loader, normalise
from raydis.data.dataset import ArrayDataset
from raydis.editor.editor import Editor
from raydis.engine.reconstruction import check_reconstructable, measure_reconstruction
from raydis.engine.record import RunRecord
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import ConfigError
from raydis.methods.contract import Method, Move, UnitMethod
from raydis.metrics.frechet import frechet_distance
from raydis.metrics.reconstruction import Reconstruction, psnr, ssim
from tests.markdown import FENCE, read_pages


class Pixels(UnitMethod):
    """Units that are the pixels of an image, so that a reconstruction is perfect but for `error`."""

    def __init__(self, error: float = 0.0, reason: str | None = None, noise_shape: tuple | None = None) -> None:
        super().__init__()
        self.error, self.reason, self.shape = error, reason, noise_shape
        self.num_units, self.unit_dim = 3 * 16 * 16, 1

    @property
    def moves(self) -> Sequence[Move]:
        return []

    def units(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        return self.shape

    def not_ready(self) -> str | None:
        return self.reason

    def decode(self, codes: Tensor, noise: Tensor | None, steps: object, sampler: object) -> Tensor:
        assert (steps, sampler) == (None, None)
        drawn = codes.reshape(-1, 3, 16, 16) + self.error
        return drawn if noise is None else drawn + noise


@pytest.fixture
def loader(dataset: FactorDataset) -> Loader:
    return Loader(dataset, batch_size=1, seed=0)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A TorchScript file whose features are the mean colours of 8-bit images."""

    class Colours(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Colours(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).save(str(tmp_path / "network.pt"))
    return tmp_path / "network.pt"


def test_a_perfect_reconstruction_is_as_good_as_numbers_get(loader: Loader, network: Path) -> None:
    config = EvaluationConfig(num_reconstructions=20, frechet_network=str(network))
    method = Pixels().train()
    found = measure_reconstruction(method, loader, config)
    assert found is not None
    assert (found.psnr, found.ssim) == (160.0, pytest.approx(1.0))
    assert found.frechet_distance == pytest.approx(0.0, abs=1e-6)
    assert method.training


def test_an_error_of_a_twentieth_of_the_range_is_26_db(loader: Loader, network: Path) -> None:
    config = EvaluationConfig(num_reconstructions=20, frechet_network=str(network))
    found = measure_reconstruction(Pixels(0.1), loader, config)
    assert found is not None
    assert found.psnr == pytest.approx(20.0 * np.log10(20.0), abs=1e-3)
    indices = np.linspace(0, len(loader.dataset) - 1, 20).astype(np.int64)
    ours = loader.dataset.images(indices).astype(np.float64)
    theirs = np.minimum(np.round(ours + 12.75), 255)
    expected = frechet_distance(ours.mean((1, 2)), theirs.mean((1, 2)))
    assert expected > 100
    assert found.frechet_distance == pytest.approx(expected, rel=1e-4)
    assert found.ssim == pytest.approx(
        ssim(loader.gather(indices).numpy(), loader.gather(indices).numpy() + np.float32(0.1), peak=2.0).mean()
    )


def test_the_noise_is_that_of_the_seed_and_another_one_for_each_image(loader: Loader) -> None:
    method, shape = Pixels(noise_shape=(3, 16, 16)), (3, 16, 16)
    found = measure_reconstruction(method, loader, EvaluationConfig(num_reconstructions=4, seed=7))
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(7)).numpy()
    assert found is not None
    assert found.psnr == pytest.approx(psnr(np.zeros_like(noise), noise, peak=2.0).mean(), rel=1e-4)
    other = measure_reconstruction(method, loader, EvaluationConfig(num_reconstructions=4, seed=8))
    assert other is not None
    assert other.psnr != found.psnr


def test_nothing_is_measured_unless_it_is_asked_for_or_if_there_is_nothing(loader: Loader) -> None:
    asked = EvaluationConfig(num_reconstructions=4)
    assert measure_reconstruction(Pixels(), loader, EvaluationConfig()) is None
    assert measure_reconstruction(Pixels(), loader, EvaluationConfig(num_reconstructions=0)) is None
    assert measure_reconstruction(Pixels(reason="no unit is open"), loader, asked) is None
    assert measure_reconstruction(Pixels(float("nan")), loader, asked) is None


def test_images_smaller_than_a_window_have_no_ssim() -> None:
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8, 1), dtype=np.uint8)
    loader = Loader(ArrayDataset("grey", images, None, fingerprint="a"), batch_size=1, seed=0)

    class Grey(Pixels):
        def decode(self, codes: Tensor, noise: object, steps: object, sampler: object) -> Tensor:
            return codes.reshape(-1, 1, 8, 8)

    found = measure_reconstruction(Grey(), loader, EvaluationConfig(num_reconstructions=6))
    assert found == Reconstruction(160.0, None, None)


def test_grey_images_go_to_the_network_in_three_channels(network: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(6, 16, 16, 1), dtype=np.uint8)
    loader = Loader(ArrayDataset("grey", images, None, fingerprint="a"), batch_size=1, seed=0)

    class Dark(Pixels):
        def decode(self, codes: Tensor, noise: object, steps: object, sampler: object) -> Tensor:
            return torch.full((len(codes), 1, 16, 16), -1.0)

    config = EvaluationConfig(num_reconstructions=6, frechet_network=str(network))
    check_reconstructable(Dark(), loader, config)
    found = measure_reconstruction(Dark(), loader, config)
    grey = images.mean((1, 2)).repeat(3, 1)
    assert found is not None
    assert found.frechet_distance == pytest.approx(frechet_distance(grey, np.zeros((6, 3))), rel=1e-5)


@pytest.mark.parametrize("sections", [{}, {"units": {"rotation": "ica"}}], ids=["as it is", "rotated"])
def test_a_run_reports_and_stores_what_it_was_asked_for(
    sections: dict, tiny: Callable[..., RunConfig], dataset: FactorDataset, tmp_path: Path
) -> None:
    config = tiny(
        train={"num_images": 64},
        evaluation={"protocol": "none", "num_reconstructions": 9, "seed": 3},
        **sections,
    )
    *_, last = run_session(Training(config, dataset, device=torch.device("cpu")), tmp_path)
    assert last.reconstruction is not None
    assert last.checkpoint is not None
    row = last.record.to_ray()
    assert RunRecord.from_ray(row).reconstruction == last.reconstruction
    stored = open_checkpoint(last.checkpoint).metrics
    assert {name: stored[name] for name in ("psnr", "ssim", "frechet_distance")} == last.reconstruction.to_dict()
    assert {name: row[name] for name in ("psnr", "ssim", "frechet_distance")} == last.reconstruction.to_dict()

    method = Editor.open(last.checkpoint).method
    assert method.noise_shape is not None
    indices = np.linspace(0, len(dataset) - 1, 9).astype(np.int64)
    images = normalise(torch.from_numpy(dataset.images(indices)))
    noise = torch.randn(9, *method.noise_shape, generator=torch.Generator().manual_seed(3))
    drawn = method.decode(method.encode(images), noise, min(20, method.max_steps or 0), "unipc")
    assert last.reconstruction.psnr == pytest.approx(psnr(images.numpy(), drawn.numpy(), peak=2.0).mean(), abs=1e-3)


def test_a_network_without_features_for_8_bit_images_is_refused_before_training(loader: Loader, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8)).save(str(tmp_path / "floats.pt"))
    config = EvaluationConfig(num_reconstructions=4, frechet_network=str(tmp_path / "floats.pt"))
    with pytest.raises(ConfigError, match=r"floats\.pt gives no features for images of type uint8.*: wrap it as"):
        check_reconstructable(Pixels(), loader, config)
    with pytest.raises(ConfigError, match=r"absent\.pt is no TorchScript file"):
        check_reconstructable(
            Pixels(), loader, EvaluationConfig(num_reconstructions=4, frechet_network=str(tmp_path / "absent.pt"))
        )


def test_more_reconstructions_than_images_and_those_of_a_method_without_any_are_refused(loader: Loader) -> None:
    class Blind(Method):
        @property
        def moves(self) -> Sequence[Move]:
            return []

    with pytest.raises(ConfigError, match=r"num_reconstructions=325, but the data set has 324 images: lower it"):
        check_reconstructable(Pixels(), loader, EvaluationConfig(num_reconstructions=325))
    with pytest.raises(ConfigError, match=r"Blind reconstructs no images: remove it"):
        check_reconstructable(Blind(), loader, EvaluationConfig(num_reconstructions=4))
    assert measure_reconstruction(Blind(), loader, EvaluationConfig()) is None
    check_reconstructable(Blind(), loader, EvaluationConfig())


def test_a_network_without_reconstructions_is_refused_where_the_configuration_is_read() -> None:
    with pytest.raises(ValueError, match=r"set evaluation\.num_reconstructions=10000"):
        EvaluationConfig(frechet_network="inception.pt")


def test_the_page_says_how_to_ask_an_inception_network_for_features(
    loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The widespread file returns class probabilities unless it is asked for features, as does the network here."""

    class Inception(nn.Module):
        def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
            found = images.float().mean((2, 3))
            return found if return_features else found.softmax(1)

    monkeypatch.chdir(tmp_path)
    block = next(
        text for language, text in FENCE.findall(read_pages()["raydis/metrics/README.md"].text) if language == "py"
    )
    (tmp_path / "wrap.py").write_text(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Inception()).save("inception-2015-12-05.pt")
        runpy.run_path("wrap.py", run_name="__main__")  # as a script
    config = EvaluationConfig(num_reconstructions=20, frechet_network=str(tmp_path / "features.pt"))
    check_reconstructable(Pixels(0.1), loader, config)
    found = measure_reconstruction(Pixels(0.1), loader, config)
    assert found is not None
    assert found.frechet_distance is not None
    assert found.frechet_distance > 100  # of probabilities it cannot exceed 2
