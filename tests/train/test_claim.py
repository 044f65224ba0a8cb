"""A run keeps its name and its values over upgrades, and says what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydis.config import RunConfig
from raydis.config.identity import settings
from raydis.config.presets import expand
from raydis.errors import ConfigError, RegistryError
from raydis.store import LocalStore
from raydis.train.claim import claim, default_name, run_name

STAGE = {"kind": "vq", "stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def behind(checkpoint: str) -> RunConfig:
    """A run behind a learned first stage."""
    return RunConfig.model_validate(expand({"preset": "tiny", "first_stage": {**STAGE, "checkpoint": checkpoint}}))


def publish(store: LocalStore, version: int, alias: str = "best") -> str:
    """A version that an alias points to; nothing of it but what a look-up reads."""
    manifest = f"registry/stage/versions/{version}"
    for name in ("config.json", "manifest.json"):
        store.write(f"{manifest}/{name}", b"{}")
    state = {"version": version, "previous": None, "moves": version}
    store.write(f"registry/stage/aliases/{alias}.json", json.dumps(state).encode())
    return f"{store.uri}/{manifest}"


def test_a_runs_name_is_a_hash_of_what_was_set(tiny_run: Any) -> None:
    name = default_name(tiny_run())
    assert name.startswith("shapes3d_procedural-")
    assert default_name(tiny_run(compute={"num_workers": 2})) == name
    assert default_name(tiny_run(train={"weight_decay": 0.01})) == name  # which is the default
    assert default_name(tiny_run(seed=1)) != name
    assert default_name(tiny_run(train={"learning_rate": 2e-3})) != name


def test_a_run_goes_on_under_a_version_that_has_one_more_field(tiny_run: Any, store: LocalStore) -> None:
    claim(store, "mine", tiny_run())
    recorded = json.loads(store.read("train/mine/run.json"))
    del recorded["resolved"]["train"]["ema_decay"], recorded["resolved"]["method"]["anchors"]["inertia"]
    store.write("train/mine/run.json", json.dumps(recorded).encode())
    config = tiny_run(train={"ema_decay": 0.9999})  # its default
    assert claim(store, "mine", config) == config
    with pytest.raises(
        ConfigError, match=r"\(its run\.json\): train\.ema_decay was not there, is 0\.9\. Use the recorded"
    ):
        claim(store, "mine", tiny_run())


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"train": {"learning_rate": 2e-3}},
            r"train\.learning_rate was 0\.001, is 0\.002\. Use the recorded values to continue it",
        ),
        ({"seed": 3, "train": {"batch_size": 64}}, r"train\.batch_size was 32, is 64; seed was 0, is 3\."),
        ({"data": {"levels": {"scale": 3}}}, r'data\.levels was \{"floor_hue": 3, .*"scale": 2.*"scale": 3'),
    ],
)
def test_what_was_set_differently_is_named(tiny_run: Any, store: LocalStore, over: Any, said: str) -> None:
    claim(store, "mine", tiny_run())
    with pytest.raises(ConfigError, match=rf"^run mine in \S+ was started with another configuration .*{said}"):
        claim(store, "mine", tiny_run(**over))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("weight_decay", 0.02, r"train\.weight_decay was 0\.02, is 0\.01 by default"),
        ("momentum", 0.9, r"train\.momentum was 0\.9, which this version of raydis does not know"),
    ],
)
def test_what_an_upgrade_changed_is_named(tiny_run: Any, store: LocalStore, key: str, value: float, said: str) -> None:
    claim(store, "mine", tiny_run())
    recorded = json.loads(store.read("train/mine/run.json"))
    recorded["resolved"]["train"][key] = value
    store.write("train/mine/run.json", json.dumps(recorded).encode())
    with pytest.raises(ConfigError, match=said):
        claim(store, "mine", tiny_run())


def test_an_alias_that_moves_does_not_move_a_run(store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    config, first = behind("stage@best"), publish(store, 1)
    assert claim(store, "mine", config) == behind(first)
    publish(store, 2)
    assert run_name(store, config) == default_name(config)
    assert claim(store, "mine", config) == behind(first)
    assert (
        f"run mine continues with first_stage.checkpoint={first}, to which stage@best pointed at its start"
        in caplog.text
    )
    store.delete("registry/stage/aliases/best.json")
    assert claim(store, "mine", config) == behind(first)
    assert claim(store, "mine", behind(first)) == behind(first)  # the same, said in full
    publish(store, 2, alias="other")
    with pytest.raises(ConfigError, match=r"first_stage\.checkpoint was \S+versions/1\", is \S+versions/2"):
        claim(store, "mine", behind("stage@other"))
    with pytest.raises(RegistryError):
        claim(store, "new", config)
    assert not store.exists("train/new/run.json")


def test_vq_and_kl_stages_with_equal_settings_are_two_runs(store: LocalStore) -> None:
    vq = behind("/stage")
    kl = RunConfig.model_validate(
        expand({"preset": "tiny", "first_stage": {**STAGE, "kind": "kl", "checkpoint": "/stage"}})
    )
    assert default_name(vq) != default_name(kl)


# ---- runs of earlier versions: run.json was the configuration, the name a hash of it


def earlier(store: LocalStore, name: str, config: RunConfig, *without: str) -> None:
    tree = config.model_dump(mode="json", exclude={"compute"})
    for key in without:
        *above, last = key.split(".")
        node = tree
        for part in above:
            node = node[part]
        del node[last]
    store.write(f"train/{name}/run.json", json.dumps(tree).encode())


def test_an_earlier_versions_run_goes_on_and_names_what_differs(tiny_run: Any, store: LocalStore) -> None:
    earlier(store, "mine", tiny_run(), "train.precision")
    assert claim(store, "mine", tiny_run()) == tiny_run()
    with pytest.raises(ConfigError, match=r"seed was 0, is 1"):
        claim(store, "mine", tiny_run(seed=1))
    earlier(store, "stage", behind(publish(store, 1)))
    assert claim(store, "stage", behind("stage@best")).first_stage == behind(publish(store, 1)).first_stage


def test_an_earlier_versions_unnamed_run_is_found_among_others(tiny_run: Any, store: LocalStore) -> None:
    earlier(store, "shapes3d_procedural-000000000000", tiny_run(seed=1))
    earlier(store, "shapes3d_procedural-111111111111", tiny_run(), "train.precision")
    earlier(store, "shapes3d_procedural-of-mine", tiny_run(seed=2))
    assert run_name(store, tiny_run()) == "shapes3d_procedural-111111111111"
    assert run_name(store, tiny_run(seed=2)) == default_name(tiny_run(seed=2))
    claim(store, default_name(tiny_run()), tiny_run())
    assert run_name(store, tiny_run()) == default_name(tiny_run())


def test_a_run_whose_keys_have_other_names_today_goes_on_under_its_name(store: LocalStore) -> None:
    """The first stage's `num_codes` is `num_embeddings` now, so the hash of what was set is another one."""
    preset: dict[str, Any] = {"preset": "vq", "method": {"num_embeddings": 64}}
    config, other = (RunConfig.model_validate(expand(preset | {"seed": seed})) for seed in (0, 1))
    tree = config.model_dump(mode="json", exclude={"compute"})
    tree["method"]["num_codes"] = tree["method"].pop("num_embeddings")
    chosen = settings(config)
    chosen["method.num_codes"] = chosen.pop("method.num_embeddings")
    name = f"{config.data.name}-0123456789ab"
    store.write(f"train/{name}/run.json", json.dumps({"set": chosen, "resolved": tree}).encode())
    assert run_name(store, config) == name
    assert claim(store, name, config) == config
    assert run_name(store, other) == default_name(other)
