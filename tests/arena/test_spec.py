"""What an arena file may say: equal terms for all entrants, fresh seeds, and draws that no study has used."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydis.arena.spec import ArenaSpec, load_arena
from raydis.errors import ConfigError
from raydis.metrics.scoring import NUM_DRAWS, derived_seed
from tests.arena.conftest import BORROWER, LARGE


def test_what_is_common_holds_for_every_entrant(spec: ArenaSpec) -> None:
    runs = [entrant.run for entrant in spec.entrants.values()]
    assert {run.method.kind for run in runs} == {"dyga_sd", "beta_vae", "pca_ica"}
    assert {run.train.num_images for run in runs} == {640} == {spec.num_images}
    assert {run.data.image_size for run in runs} == {16}
    assert {run.train.batch_size for run in runs} == {32}  # each preset's own


def test_a_study_begins_with_the_entrants_own_setting_and_has_the_common_number_of_trials(spec: ArenaSpec) -> None:
    for name in ("ours", "rival"):
        study = spec.study(name)
        assert study.total_trials == spec.num_trials == 3
        assert [control.runs() for control in study.controls] == [{"default": {}}]
        assert set(study.search) == set(spec.entrants[name].run.method.default_search_space())
        assert study.promotion is None
        assert study.run == spec.entrants[name].run
    assert spec.study("closed").total_trials == 1


def test_one_trial_is_the_own_setting_without_a_search(path: Path) -> None:
    spec = load_arena(path, ["num_trials=1"])
    assert [spec.study(name).total_trials for name in spec.entrants] == [1, 1, 1]


def test_a_final_trains_the_chosen_setting_with_fresh_seeds_and_scores_it_on_draws_of_its_own(spec: ArenaSpec) -> None:
    final, study = spec.final("ours", {"method.num_units": 5}, (11, 13)), spec.study("ours")
    (control,) = final.controls
    assert control.runs() == {
        "ours/11": {"method.num_units": 5, "seed": 11},
        "ours/13": {"method.num_units": 5, "seed": 13},
    }
    assert final.num_trials == 0
    assert final.run.evaluation.protocol == "published"
    assert final.run.evaluation.estimator == "tree"
    ours, theirs = final.run.evaluation.seed, study.run.evaluation.seed
    used = {theirs, *(derived_seed(theirs, f"draw {draw}") for draw in range(2, NUM_DRAWS + 1))}
    assert not used & {ours, *(derived_seed(ours, f"draw {draw}") for draw in range(2, NUM_DRAWS + 1))}
    assert derived_seed(theirs, "publication") != ours
    assert final.run.model_copy(update={"evaluation": study.run.evaluation}) == study.run


def test_an_entrant_can_be_changed_and_left_out_from_the_command_line(path: Path) -> None:
    spec = load_arena(path, ["entrants.rival=null", "entrants.ours.run.method.num_units=6", "run.train.num_images=320"])
    assert list(spec.entrants) == ["ours", "closed"]
    assert spec.entrants["ours"].run.method.num_units == 6
    assert spec.num_images == 320


def test_another_data_set_replaces_the_data_of_all(path: Path) -> None:
    path.write_text(path.read_text().partition("run:\n  data")[0] + "entrants: {a: {run: {preset: small}}, b: {run: "
                    "{preset: pca_ica_small}}}")  # fmt: skip
    spec = load_arena(path, ["focus=a", "run.data.name=sprites", "run.data.path=Sprites"])
    assert {(each.run.data.name, each.run.data.path) for each in spec.entrants.values()} == {("sprites", "Sprites")}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("entrants.ours.run.train.num_images=3", None),  # the arena's own `run` wins
        ("run.train.num_image=3", "entrants.ours.run.train.num_image: unknown key; did you mean num_images?"),
        ("run.method.num_units=3", "run: found data, train, evaluation, method, expected some of data, evaluation"),
        ("run=3", "run: found 3, expected some of data, evaluation, train, compute"),
        ("entrants.ours.run.data.image_size=32", None),
        ("focus=theirs", "focus=theirs is not an entrant: use one of ours, rival, closed"),
        ("seeds=[11, 11]", "seeds 11, 11: each may occur only once"),
        ("seeds=[11]", "a list of at least 2"),
        ("seeds=[0, 11]", "the study of ours uses seed 0: name others for the final"),
        ("seeds=[-1, 11]", "must be at least 0"),
        ("num_trials=0", "must be at least 1"),
        ("entrants.ours.search={seed: {kind: int, low: 1, high: 3}}", "ours searches over seed"),
        ("entrants.ours.search={method.num_unit: {kind: int, low: 1, high: 3}}", "did you mean method.num_units?"),
        ("entrants.ours.search={method.num_units: {kind: int, low: 0, high: 3}}", "entrant ours: search"),
        ("entrants.ours=3", "entrants.ours: found 3, expected a mapping"),
        ("entrants.ours.run=3", "entrants.ours.run: found 3"),
        ("entrants={ours: {run: {preset: tiny}}}", "at least 2"),
        ("entrants.ours.run.preset=tinny", "unknown preset 'tinny'"),
        ("entrants.ours.speed.images_per_s=0", "must be above 0"),
        ("run.data={name: image_folder, path: x, image_size: 16}", "image_folder has no factors"),
        ("run.evaluation.protocol=none", "protocol=none"),
        (
            "objectives=[{metric: factor_vae, direction: min}]",
            "factor_vae has direction min, .*leave out the direction",
        ),
        ("trials=3", "trials: unknown key; did you mean num_trials?"),
    ],
)
def test_what_would_not_be_fair_or_is_misspelt_is_refused(path: Path, override: str, words: str | None) -> None:
    if words is None:
        assert load_arena(path, [override]) == load_arena(path, [])
        return
    with pytest.raises(ConfigError, match=words) as refused:
        load_arena(path, [override])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("share", "first"), [(None, 320), (0.25, 160), (0.9, 576)])
def test_a_pre_training_takes_its_share_of_the_common_budget(path: Path, share: float | None, first: int) -> None:
    more = [] if share is None else [f"entrants.ours.pretraining.share={share}"]
    spec = load_arena(path, [*LARGE, BORROWER, *more])
    entrant = spec.entrants["ours"]
    assert entrant.pretraining is not None
    assert entrant.pretraining.run.train.num_images == first
    assert entrant.run.train.num_images == 640 - first
    assert entrant.num_images == spec.num_images == 640
    assert entrant.pretraining.run.evaluation.protocol == "none"
    assert entrant.pretraining.run.data == entrant.run.data
    # Rungs are counted from the beginning of the pre-training, and those within it are never scored.
    assert spec.study("ours").run.evaluation.rungs == tuple(rung - first for rung in (160, 480) if rung > first)
    assert spec.study("rival").run.evaluation.rungs == (160, 480)
    borrowing = spec.model_copy(update={"entrants": spec.entrants | {"ours": entrant.borrowing("/runs/checkpoint")}})
    assert borrowing.final("ours", {}, (11,)).run.checkpoints() == {"method.pretrained.checkpoint": "/runs/checkpoint"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("entrants.ours.pretraining.key=method.pretrained", "pretraining.key"),
        ("entrants.ours.pretraining.key=method.pretraned.checkpoint", "did you mean method.pretrained.checkpoint?"),
        ("entrants.ours.pretraining.share=1", "share: found 1, must be below 1"),
        ("entrants.ours.pretraining.share=half", "share: found 'half', expected a number"),
        ("entrants.ours.pretraining.run.train.num_image=3", "num_image: unknown key"),
        ("entrants.rival.pretraining={run: {preset: diffusion_small}}", "pretraining.key"),
    ],
)
def test_a_pre_training_that_nothing_borrows_is_refused(path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_arena(path, [*LARGE, BORROWER, override])


@pytest.mark.parametrize(
    ("entrants", "words"),
    [
        (
            "{a: {run: {preset: tiny}}, b: {run: {preset: tiny, train: {num_images: 64}}}}",
            "train.num_images is 512 for a",
        ),
        (
            "{a: {run: {preset: tiny}}, b: {run: {preset: tiny, evaluation: {seed: 3}}}}",
            "evaluation.seed is 0 for a and 3",
        ),
        (
            "{a: {run: {preset: beta_vae_small}}, b: {run: {preset: pca_ica_small, data: {image_size: 32}}}}",
            "data.image_size is 64 for a and 32 for b: set run.data.image_size, for all entrants",
        ),
    ],
)
def test_entrants_that_do_not_have_equal_terms_are_refused(tmp_path: Path, entrants: str, words: str) -> None:
    file = tmp_path / "unequal.yaml"
    file.write_text(f"name: unequal\nentrants: {entrants}\n")
    with pytest.raises(ConfigError, match=words):
        load_arena(file, [])
