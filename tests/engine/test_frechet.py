from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raydis.engine.frechet import features_of, image_distance, load_feature_network
from raydis.errors import ConfigError, MetricError
from raydis.metrics.frechet import frechet_distance


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, in which such networks are published
        torch.jit.trace(network, torch.zeros(2, 3, 8, 8)).save(str(tmp_path / "network.pt"))
    return tmp_path / "network.pt"


def test_the_distance_is_that_of_the_network_s_features_whatever_the_batches(file: Path) -> None:
    network = load_feature_network(file)
    images, drawn = torch.rand(20, 3, 8, 8), torch.rand(30, 3, 8, 8) * 0.5
    expected = frechet_distance(*(network(each).detach().double().numpy() for each in (images, drawn)))
    assert expected > 0
    assert image_distance(network, images.split(7), drawn.split(8)) == pytest.approx(expected, rel=1e-4)
    assert image_distance(network, [images], images.split(5)) == pytest.approx(0.0, abs=1e-6)
    assert features_of(network, [images]).dtype == np.float64


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(b"no network")
    for name in ("other.pt", "absent.pt"):
        with pytest.raises(ConfigError, match=rf"{name} is no TorchScript file .*: save the network with torch"):
            load_feature_network(tmp_path / name)


def test_networks_without_a_row_for_each_image_and_no_images_are_refused() -> None:
    with pytest.raises(MetricError, match="one row for each image"):
        features_of(nn.Flatten(0, 1), [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(MetricError, match="no images to compare"):
        features_of(nn.Identity(), [])
