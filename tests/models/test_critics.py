from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raydis.models.critics import ImageDiscriminator, PatchDiscriminator, PerceptualDistance, SpectralNorm

CHANNELS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    """Random weights of VGG16 under torchvision's names; the classifier's are of no use."""
    torch.manual_seed(0)
    weights, inputs = {"classifier.0.weight": torch.zeros(1)}, 3
    for number, outputs in CHANNELS.items():
        weights[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(outputs)
        inputs = outputs
    return weights


def test_a_discriminator_judges_patches() -> None:
    discriminator = PatchDiscriminator(3, (8, 16, 32))
    images = torch.randn(2, 3, 32, 32)
    verdicts = discriminator(images)
    assert verdicts.shape == (2, 1, 4, 4)
    torch.testing.assert_close(discriminator(images[:1]), verdicts[:1])  # whatever else is in the batch


def test_the_image_discriminator_has_the_published_number_of_parameters() -> None:
    """InfoGAN-CR's at 64 px with three channels."""
    discriminator = ImageDiscriminator(64, 3)
    assert sum(weight.numel() for weight in discriminator.parameters()) == 247_745
    assert discriminator(torch.randn(2, 3, 64, 64)).shape == (2, 1)


def test_a_spectral_norm_is_the_largest_singular_value_and_follows_the_weight() -> None:
    torch.manual_seed(0)
    weight, other = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    norm = SpectralNorm(weight)
    for matrix in (weight, other):
        norm.iterate(matrix, 2000)
        largest = torch.linalg.matrix_norm(matrix.flatten(1), ord=2)
        torch.testing.assert_close(norm(matrix), matrix / largest, rtol=0, atol=1e-12)
    kept = norm(weight)
    assert torch.equal(norm(weight), kept)  # a forward pass does not iterate


def test_the_gradient_through_a_spectral_norm_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    theirs = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4, bias=False).double()).eval()
    weight = theirs.parametrizations["weight"].original  # pyright: ignore
    norm = SpectralNorm(weight)
    norm.left.copy_(theirs.parametrizations["weight"][0]._u)  # pyright: ignore
    norm.right.copy_(theirs.parametrizations["weight"][0]._v)  # pyright: ignore
    inputs = torch.randn(3, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(theirs(inputs).square().sum(), weight)
    (found,) = torch.autograd.grad((inputs @ norm(weight).T).square().sum(), weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_iterating_a_discriminator_improves_the_norms_of_all_its_layers() -> None:
    torch.manual_seed(0)
    discriminator = ImageDiscriminator(16, 1)
    layers = [layer for layer in discriminator if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6
    for _ in range(300):
        discriminator.iterate()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=1e-2)


def test_features_are_those_of_the_network_written_as_torchvision_does(vgg: dict[str, Tensor]) -> None:
    layers: list[nn.Module] = []
    inputs, taken = 3, []
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if width == "M":
            taken.append(len(layers))
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, int(width), 3, padding=1), nn.ReLU()]
            inputs = int(width)
    network = nn.Sequential(*layers)
    network.load_state_dict({name.removeprefix("features."): w for name, w in vgg.items() if "features" in name})
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    x = (images * 0.5 + 0.5 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    for features, end in zip(PerceptualDistance(vgg).features(images), [*taken, len(layers)], strict=True):
        expected = network[:end](x)
        torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True).clamp_min(1e-12))


def test_equal_images_have_no_distance_and_others_have_one(vgg: dict[str, Tensor]) -> None:
    distance = PerceptualDistance(vgg)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    other = images.flip(3).requires_grad_()
    assert distance(images, images).item() == 0.0
    found = distance(images, other)
    assert 0.0 < found.item() <= 5 * 2.0  # unit vectors of no negative entries: at most sqrt(2) apart
    found.backward()
    assert other.grad is not None
    assert other.grad.abs().sum() > 0


def test_a_grey_image_counts_as_three_equal_channels(vgg: dict[str, Tensor]) -> None:
    distance = PerceptualDistance(vgg)
    one, two = torch.rand(2, 1, 1, 16, 16)
    expected = distance(one.expand(1, 3, 16, 16), two.expand(1, 3, 16, 16))
    torch.testing.assert_close(distance(one, two), expected)


def test_the_users_weights_are_neither_trained_nor_saved(vgg: dict[str, Tensor]) -> None:
    distance = PerceptualDistance(vgg)
    assert not list(distance.parameters())
    assert not distance.state_dict()


def test_a_missing_convolution_is_named(vgg: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"there is no features\.21\.bias"):
        PerceptualDistance({name: tensor for name, tensor in vgg.items() if name != "features.21.bias"})
