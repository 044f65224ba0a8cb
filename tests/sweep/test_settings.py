from __future__ import annotations

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.sweep.settings import configure


def test_configure_replaces_values_and_whole_sections_and_leaves_the_base_alone() -> None:
    base = RunConfig.model_validate(expand({"preset": "tiny"}))
    run = configure(base, {"method.unet.multipliers": [1, 1], "first_stage": {"kind": "pixel"}, "seed": 5,
                           "method.unet.skip_dropout_sizes": [16], "method.unet.attention_sizes": [8]})  # fmt: skip
    assert run.method.unet.multipliers == (1, 1)
    assert run.first_stage.kind == "pixel"
    assert run.seed == 5
    assert base.first_stage.kind == "patch_pca"
    assert configure(base, {}) == base
