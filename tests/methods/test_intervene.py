"""Interventions: exactly one unit of a latent changes, and every allowed unit is as likely."""

from __future__ import annotations

import pytest
import torch

from raydis.methods.intervene import Source, choose_partners, choose_units, draw_intervention, intervene

SOURCES = pytest.mark.parametrize("source", ["batch", "prior"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_allowed_units_are_chosen_and_each_as_often() -> None:
    allowed = torch.tensor([True, False, True, True, False])
    chosen = choose_units(allowed, torch.rand(30_000, 5, generator=generator()))
    counts = torch.bincount(chosen, minlength=5)
    assert counts[~allowed].tolist() == [0, 0]
    # Binomial with 30,000 draws of probability 1/3: a deviation of 82; six of them are 490.
    assert all(abs(int(count) - 10_000) < 490 for count in counts[allowed])


def test_the_first_unit_stands_for_none() -> None:
    assert choose_units(torch.zeros(3, dtype=torch.bool), torch.rand(4, 3)).tolist() == [0, 0, 0, 0]


def test_a_partner_is_another_row_and_every_other_row_is_as_likely() -> None:
    count = 6
    seen = torch.zeros(count, count)
    for seed in range(400):
        partners = choose_partners(torch.rand(count, generator=generator(seed)))
        seen[torch.arange(count), partners] += 1
    assert seen.diagonal().tolist() == [0.0] * count
    # Each of 5 rows with probability 1/5 in 400 draws: 80 with a deviation of 8; five of them are 40.
    assert bool(((seen - 80).abs() < 40)[~torch.eye(count, dtype=torch.bool)].all())


def test_the_extremes_of_a_key_are_partners_too() -> None:
    assert choose_partners(torch.zeros(4)).tolist() == [1, 2, 3, 0]
    assert choose_partners(torch.full((4,), 1 - 1e-7)).tolist() == [3, 0, 1, 2]
    assert choose_partners(torch.tensor([0.5])).tolist() == [0]  # alone


@SOURCES
def test_exactly_one_coordinate_of_each_row_changes(source: Source) -> None:
    latents, allowed = torch.randn(32, 5, generator=generator(1)), torch.tensor([True, True, False, True, False])
    draws = draw_intervention(32, 5, source, generator(2))
    units = choose_units(allowed, draws["unit_keys"])
    changed = intervene(latents, units, draws, source)
    differs = changed != latents
    assert differs.sum(1).tolist() == [1] * 32
    assert torch.equal(differs.int().argmax(1), units)
    assert not bool(differs[:, ~allowed].any())


def test_a_new_value_of_the_batch_is_that_of_another_row_and_one_of_the_prior_is_drawn() -> None:
    latents = torch.arange(12.0).view(4, 3)
    units, draws = torch.tensor([0, 1, 2, 0]), {"values": torch.tensor([0.0, 0.4, 0.9, 0.0])}
    taken = intervene(latents, units, draws, "batch").gather(1, units[:, None]).squeeze(1)
    assert taken.tolist() == [3.0, 10.0, 5.0, 0.0]  # of rows 1, 3, 1 and 0
    drawn = intervene(latents, units, draws, "prior").gather(1, units[:, None]).squeeze(1)
    assert torch.equal(drawn, draws["values"])


def test_values_of_the_prior_are_normal_and_keys_uniform() -> None:
    prior, batch = (draw_intervention(20_000, 2, source, generator())["values"] for source in ("prior", "batch"))
    assert float(prior.std()) == pytest.approx(1.0, abs=0.03)  # 1 / sqrt(2 * 20,000) = 0.005
    assert 0.0 <= float(batch.min()) < float(batch.max()) < 1.0
