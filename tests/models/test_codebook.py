from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydis.models.codebook import Codebook


@pytest.fixture
def codebook() -> Codebook:
    """Three embeddings of two numbers, on the plane."""
    book = Codebook(3, 2, commitment=0.25)
    book.embeddings.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [4.0, 0.0]])
    return book


def latents() -> Tensor:
    """Two pixels, (0.8, 0.6) and (2.0, -1.0), of one image."""
    return torch.tensor([[[[0.8, 2.0]], [[0.6, -1.0]]]], requires_grad=True)


def test_pixels_become_their_nearest_embeddings(codebook: Codebook) -> None:
    assert codebook.nearest(latents()).tolist() == [[[1, 0]]]
    assert codebook.quantise(latents()).tolist() == [[[[1.0, 0.0]], [[1.0, 0.0]]]]


def test_nearest_is_least_distance_for_random_embeddings() -> None:
    torch.manual_seed(0)
    book = Codebook(50, 3)
    book.embeddings.data.normal_()
    points = torch.randn(2, 3, 4, 5)
    distances = torch.cdist(points.movedim(1, -1).reshape(-1, 3), book.embeddings.data)
    assert torch.equal(book.nearest(points).flatten(), distances.argmin(1))


def test_the_loss_is_that_of_the_paper(codebook: Codebook) -> None:
    """Squared differences 0.04, 0.16 and 4, 1, mean 1.3: once for the embeddings, 0.25 times for the latents."""
    _, loss = codebook(latents())
    assert loss.item() == pytest.approx(1.25 * (0.04 + 0.16 + 4.0 + 1.0) / 4)


def test_each_side_of_the_loss_pulls_one_of_the_two(codebook: Codebook) -> None:
    points = latents()
    codebook(points)[1].backward()
    assert points.grad is not None
    assert codebook.embeddings.grad is not None
    # d/dz of 0.25 (z - e)^2 / 4, d/de of (e - z)^2 / 4
    torch.testing.assert_close(points.grad[0, :, 0], 0.25 * 2 / 4 * torch.tensor([[-0.2, 2.0], [-0.4, -1.0]]))
    torch.testing.assert_close(codebook.embeddings.grad, 2 / 4 * torch.tensor([[-2.0, 1.0], [0.2, 0.4], [0.0, 0.0]]))


def test_gradients_pass_straight_through(codebook: Codebook) -> None:
    points, wanted = latents(), torch.tensor([[[[3.0, -1.0]], [[0.5, 2.0]]]])
    quantised, _ = codebook(points)
    torch.testing.assert_close(quantised, codebook.quantise(points))
    (quantised * wanted).sum().backward()
    assert points.grad is not None
    assert torch.equal(points.grad, wanted)
    assert codebook.embeddings.grad is None


def test_the_first_embeddings_are_pixels_of_the_latents_and_repeat_with_the_seed() -> None:
    points = torch.randn(5, 2, 4, 4)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        book = Codebook(16, 2)
        book.fit(points)
        found.append(book.embeddings.data)
    assert torch.equal(found[0], found[1])
    assert len(found[0].unique(dim=0)) == 16
    rows = {tuple(row) for row in points.movedim(1, -1).reshape(-1, 2).tolist()}
    assert {tuple(row) for row in found[0].tolist()} <= rows


def test_too_few_latents_fill_a_part_of_the_embeddings() -> None:
    book = Codebook(16, 2)
    rest = book.embeddings.data[4:].clone()
    book.fit(torch.randn(1, 2, 2, 2))
    assert torch.equal(book.embeddings.data[4:], rest)


def test_embeddings_are_chosen_in_full_precision(codebook: Codebook) -> None:
    """bfloat16 has 8 bits: it cannot tell 256.0 from 256.5."""
    codebook.embeddings.data = torch.tensor([[256.0, 0.0], [256.5, 0.0]])
    points = torch.tensor([[[[256.5]], [[0.0]]]])
    with torch.autocast("cpu", torch.bfloat16):
        quantised, loss = codebook(points)
    assert quantised.flatten().tolist() == [256.5, 0.0]
    assert loss.item() == 0.0


def test_embeddings_load_under_their_former_name_too(codebook: Codebook) -> None:
    """Checkpoints of format version 1 call them `codes`, also where the codebook is a part of a network."""
    restored, stored = Codebook(3, 2), {"0.codes": codebook.embeddings.detach().clone()}
    torch.nn.Sequential(restored).load_state_dict(stored)
    assert torch.equal(restored.embeddings, codebook.embeddings)
    assert list(stored) == ["0.codes"]
