from __future__ import annotations

from raydis.config.tree import flattened


def test_every_value_has_its_dotted_key_and_an_empty_mapping_is_a_value() -> None:
    tree = {"a": {"b": {"c": 1, "d": [2]}, "e": {}}, "f": None}
    assert dict(flattened(tree)) == {"a.b.c": 1, "a.b.d": [2], "a.e": {}, "f": None}
