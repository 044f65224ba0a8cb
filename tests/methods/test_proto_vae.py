"""ProtoVAE: the episode's losses on embeddings that are known, and what they ask of the networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.methods.contract import Batch
from raydis.methods.intervene import intervene
from raydis.methods.proto_vae import ProtoVae, find_prototypes, mean_over, prototypical_loss, split_episode
from raydis.methods.vae import BetaVae
from tests.double import double_precision

VAE = {"num_units": 4, "hidden_dim": 16}
OFF = {"prototype_weight": 0.0, "isometry_weight": 0.0, "cycle_weight": 0.0}


def make(kind: str = "proto_vae", **options: object) -> nn.Module:
    torch.manual_seed(0)
    method = {"kind": kind, **VAE, **options}
    return build_method(RunConfig.model_validate({"data": {"image_size": 16}, "method": method}), 3)


def proto(**options: object) -> ProtoVae:
    method = make(**{"min_kl": 0.0, "embedding_dim": 8, **options})
    assert isinstance(method, ProtoVae)
    return method


def images(count: int = 16) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def draws_of(method: ProtoVae, count: int = 16) -> dict[str, Tensor]:
    return method.draw(count, torch.Generator().manual_seed(2))


# ---- episodes


def test_half_of_the_valid_rows_of_a_class_support_it_and_half_are_queries() -> None:
    classes = torch.tensor([0, 0, 1, 0, 1, 0, 2, 3, 3])
    valid = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0]).bool()
    support, query = split_episode(classes, valid, 5)
    assert support.int().tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 0]  # 0 at rows 0, 1 and 5; 1 at rows 2 and 4
    assert query.int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]  # 2 has one row, and of 3 one row is valid


def test_prototypes_are_means_of_the_support_alone() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [9.0, 9.0], [3.0, 4.0], [5.0, 5.0]])
    classes, support = torch.tensor([0, 0, 0, 2]), torch.tensor([True, False, True, False])
    prototypes, present = find_prototypes(embeddings, classes, support, 3)
    assert prototypes[0].tolist() == [2.0, 2.0]
    assert present.tolist() == [True, False, False]
    other = embeddings.clone()
    other[[1, 3]] = other[[3, 1]]  # queries change places
    assert torch.equal(find_prototypes(other, classes, support, 3)[0], prototypes)


@pytest.mark.parametrize("num_present", [2, 3, 5])
def test_embeddings_of_zero_are_at_chance_among_the_classes_that_are_there(num_present: int) -> None:
    classes = torch.arange(num_present).repeat(4)
    support, query = split_episode(classes, torch.ones(len(classes), dtype=torch.bool), 7)
    loss = prototypical_loss(torch.zeros(len(classes), 3), classes, support, query, 7)
    assert loss.item() == pytest.approx(math.log(num_present), rel=1e-6)


def test_the_loss_is_the_cross_entropy_of_squared_distances() -> None:
    embeddings = torch.tensor([[0.0], [1.0], [3.0], [2.0]])  # prototypes 0 and 3, queries at 1 and 2
    support, query = torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([0, 1, 0, 1]).bool()
    loss = prototypical_loss(embeddings, torch.tensor([0, 0, 1, 1]), support, query, 2)
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.0 - 4.0)))


def test_an_episode_without_rows_costs_nothing_and_has_finite_gradients() -> None:
    embeddings = torch.randn(4, 2, requires_grad=True)
    none = torch.zeros(4, dtype=torch.bool)
    loss = prototypical_loss(embeddings, torch.zeros(4, dtype=torch.int64), none, none, 3)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not bool(embeddings.grad.any())
    assert mean_over(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])).item() == 3.5


# ---- the method


def test_without_episodes_it_trains_as_beta_vae_bit_for_bit() -> None:
    ours, theirs = proto(beta=3.0, **OFF), make("beta_vae", beta=3.0)
    assert isinstance(theirs, BetaVae)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()})
    for method in (ours, theirs):
        draws = method.draw(16, torch.Generator().manual_seed(2))
        method(Batch(images(), draws), "vae")["loss"].backward()
    for name, weight in theirs.named_parameters():
        mine = ours.get_parameter(name).grad
        assert mine is not None
        assert weight.grad is not None
        assert torch.equal(mine, weight.grad), name
    (move,) = ours.moves
    assert not move.couples


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    method = proto(beta=2.0, prototype_weight=3.0, isometry_weight=0.5, cycle_weight=0.25)
    losses = {name: loss.item() for name, loss in method(Batch(images(), draws_of(method)), "vae").items()}
    assert all(losses[name] > 0 for name in ("prototype", "isometry", "cycle"))
    weighted = 3 * losses["prototype"] + 0.5 * losses["isometry"] + 0.25 * losses["cycle"]
    assert losses["loss"] == pytest.approx(losses["reconstruction"] + 2 * losses["kl"] + weighted, rel=1e-6)
    assert method.moves[0].couples


def test_the_isometry_compares_the_length_of_an_embedding_with_the_size_of_the_change() -> None:
    method = proto()
    with torch.no_grad():
        for weight in method.pair_encoder.parameters():
            weight.zero_()  # every embedding is 0, so the error is the change itself
    codes, draws = torch.randn(16, 4, generator=torch.Generator().manual_seed(3)), draws_of(method)
    active = torch.tensor([False, True, False, False])
    changed = intervene(codes, torch.full((16,), 1), draws, "batch")
    sizes = (changed - codes)[:, 1].abs()
    kept = sizes > 0.25 * codes[:, 1].std(correction=0)
    assert 0 < int(kept.sum()) < 16
    found = method.episode(codes, active, draws)["isometry"].item()
    assert found == pytest.approx(float(sizes[kept].square().mean()), rel=1e-5)


def test_the_weight_of_the_prototypes_rises_in_the_first_tenth() -> None:
    method = proto()
    for share, warmth in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)):
        method.begin_step(share)
        assert method.warmth.item() == pytest.approx(warmth)
    method = proto(warmup_share=0.0)
    method.begin_step(0.0)
    assert method.warmth.item() == 1.0


def test_nothing_is_changed_while_no_unit_is_active() -> None:
    method = proto(min_kl=1e6)
    losses = method(Batch(images(), draws_of(method)), "vae")
    assert [losses[name].item() for name in ("prototype", "isometry", "cycle")] == [0.0, 0.0, 0.0]
    losses["loss"].backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in method.parameters() if weight.grad is not None)


def test_a_change_that_is_too_small_is_left_out() -> None:
    method, active = proto(), torch.ones(4, dtype=torch.bool)
    codes, draws = torch.zeros(16, 4), draws_of(method)
    assert method.episode(codes, active, draws)["cycle"].item() == 0.0  # no unit varies
    codes[::2] = 1.0
    assert method.episode(codes, active, draws)["cycle"].item() > 0.0


def test_the_order_of_the_units_changes_no_loss() -> None:
    with double_precision():
        method, order = proto(num_units=4), torch.tensor([2, 0, 3, 1])
        codes, active = torch.randn(32, 4), torch.tensor([True, True, False, True])
        draws = {"unit_keys": torch.rand(32, 4), "values": torch.rand(32)}
        before = method.episode(codes, active, draws)
        with torch.no_grad():
            first = method.decoder.layers[0]
            assert isinstance(first, nn.Linear)
            first.weight.copy_(first.weight[:, order].clone())
            for parameter in method.encoder.heads[0].parameters():
                parameter.copy_(parameter[order].clone())
        ordered = {**draws, "unit_keys": draws["unit_keys"][:, order]}
        after = method.episode(codes[:, order], active[order], ordered)
        for name, loss in before.items():
            assert after[name].item() == pytest.approx(loss.item(), rel=1e-12), name


class Oracle(nn.Module):
    """A frozen decoder in which each unit moves rows of pixels of its own."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(4, dim=1)[:, None, :, None].expand(-1, 3, -1, 16)


def test_with_one_factor_for_each_unit_the_pair_encoder_learns_to_tell_them() -> None:
    method = proto(hidden_dim=32)
    method.decoder = Oracle()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer, generator = torch.optim.Adam(method.pair_encoder.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    active, losses = torch.ones(4, dtype=torch.bool), []
    for _ in range(150):
        codes = torch.randn(48, 4, generator=generator)
        loss = method.episode(codes, active, method.draw(48, generator))["prototype"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert sum(losses[-10:]) / 10 < 0.1


def test_the_pair_encoder_is_not_averaged() -> None:
    method = proto()
    assert list(method.averaged_modules) == [method.encoder, method.decoder]
    assert {id(module) for module in method.moves[0].modules} == {
        id(module) for module in (method.encoder, method.decoder, method.pair_encoder)
    }


def test_half_precision_changes_the_losses_by_their_rounding_alone() -> None:
    method = proto()
    batch = Batch(images(), draws_of(method))
    for move in ["vae"]:
        exact = method(batch, move)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method(batch, move)
        assert {loss.dtype for loss in rounded.values()} == {torch.float32}
        assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-2)
