"""Files of NumPy, CSV and Parquet give the same tables, and a file that cannot serve says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raydis.errors import DataError
from raydis.evaluation.files import Columns, Found, are_equal, is_table, read_codes, read_factors
from raydis.evaluation.inputs import check_codes, check_factors

CODES = np.random.default_rng(0).normal(size=(6, 3))
FACTORS = np.array([[0, 5], [1, 5], [0, 7], [1, 7], [0, 5], [1, 7]])
FRAME = pd.DataFrame({f"z{unit}": CODES[:, unit] for unit in range(3)} | {"hue": FACTORS[:, 0], "size": FACTORS[:, 1]})
WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.csv": lambda path: FRAME.to_csv(path, index=False),
    "index.csv": lambda path: FRAME.to_csv(path),
    "semicolons.csv": lambda path: FRAME.to_csv(path, index=False, sep=";"),
    "a.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "spaces.txt": lambda path: FRAME.to_csv(path, index=False, sep=" "),
    "bom.csv": lambda path: FRAME.to_csv(path, index=False, encoding="utf-8-sig"),
    "a.parquet": lambda path: FRAME.to_parquet(path, index=False),
    "index.parquet": lambda path: FRAME.set_index(np.arange(6) + 1).to_parquet(path, index=True),
}


def units(found: Found) -> tuple[np.ndarray, tuple[str, ...]]:
    (run,) = check_codes(found.codes, num_rows=6)
    return run.scalars, run.unit_names


@pytest.mark.parametrize("name", WRITERS)
def test_one_table_of_units_and_factors_is_divided_by_the_names_of_the_factors(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    found = read_codes(str(tmp_path / name), factor_names=("hue", "size"))
    scalars, names = units(found)
    assert names == ("z0", "z1", "z2")
    assert np.allclose(scalars, CODES - CODES.mean(axis=0), rtol=0, atol=1e-12)  # text has 17 digits
    factors = check_factors(found.factors)
    assert factors.names == ("hue", "size")
    assert (factors.levels == FACTORS).all()
    assert any("numbers the rows" in note for note in found.notes) == name.startswith("index")


@pytest.mark.parametrize("name", WRITERS)
def test_factors_of_a_table_are_all_its_columns_or_those_that_are_named(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    some, names = read_factors(str(tmp_path / name), factor_names=("size", "hue"))
    assert names is None
    assert np.asarray(some).tolist() == FACTORS[:, ::-1].tolist()
    every, names = read_factors(str(tmp_path / name))
    assert isinstance(every, Columns)
    assert (every.columns, names) == (list(FRAME.columns), None)


def test_numbers_of_savetxt_have_no_names(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.csv", CODES, delimiter=",")
    np.savetxt(tmp_path / "b.txt", FACTORS, fmt="%d")
    assert np.allclose(units(read_codes(str(tmp_path / "a.csv")))[0], CODES - CODES.mean(axis=0), rtol=0, atol=1e-12)
    found, names = read_factors(str(tmp_path / "b.txt"), factor_names=("hue", "size"))
    assert check_factors(found, names).names == ("hue", "size")
    assert np.asarray(found).tolist() == FACTORS.tolist()


def test_columns_that_pandas_numbers_have_a_head(tmp_path: Path) -> None:
    """A first line `0,1,2` of a table of floats was not written by savetxt, which writes floats there, too."""
    pd.DataFrame(CODES).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(CODES).to_csv(tmp_path / "b.csv")
    pd.DataFrame(FACTORS).to_csv(tmp_path / "f.csv")
    for name in ("a.csv", "b.csv"):
        scalars, names = units(read_codes(str(tmp_path / name)))
        assert (scalars.shape, names) == ((6, 3), ("0", "1", "2"))
    assert np.asarray(read_factors(str(tmp_path / "f.csv"))[0]).tolist() == FACTORS.tolist()
    (tmp_path / "levels.csv").write_text("0,1\n1,0\n0,0\n")  # perhaps the levels of a first row
    assert len(np.asarray(read_factors(str(tmp_path / "levels.csv"))[0])) == 3


def test_a_comma_at_the_end_of_each_line_adds_no_unit(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,\n1,2,\n3,4,\n")
    found = read_codes(str(tmp_path / "a.csv"))
    assert isinstance(found.codes, Columns)
    assert found.codes.columns == ["a", "b"]
    assert found.notes == ("a column without a name is empty, and was left out",)


def test_tables_of_factors_are_compared_by_name_and_missing_values_are_equal() -> None:
    days = np.array(["2026-01-01", "2026-01-02"], "datetime64[D]")
    one = Columns({"a": np.array([1.0, np.nan]), "b": days})
    assert are_equal(one, Columns({"a": np.array([1.0, np.nan]), "b": days}))
    assert not are_equal(one, Columns({"c": np.array([1.0, np.nan]), "b": days}))
    assert not are_equal(one, Columns({"a": np.array([1.0, 2.0]), "b": days}))
    assert are_equal(FACTORS, FACTORS.copy())
    assert not are_equal(FACTORS, one)


def test_npy_and_npz_hold_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", CODES)
    np.save(tmp_path / "f.npy", FACTORS)
    np.savez(tmp_path / "one.npz", anything=CODES)
    np.savez(tmp_path / "all.npz", codes=CODES, factors=FACTORS, factor_names=["hue", "size"], other=CODES[:2])
    np.savez(tmp_path / "each.npz", hue=FACTORS[:, 0], size=FACTORS[:, 1])
    for name in ("z.npy", "one.npz", "one.npz:anything", "all.npz", "all.npz:codes"):
        assert np.array_equal(np.asarray(read_codes(str(tmp_path / name)).codes), CODES), name
    whole = read_codes(str(tmp_path / "all.npz"))
    assert np.array_equal(np.asarray(whole.factors), FACTORS)
    assert whole.factor_names == ("hue", "size")
    assert read_codes(str(tmp_path / "one.npz")).factors is None
    for name, names in (("f.npy", None), ("all.npz", ("hue", "size")), ("all.npz:factors", ("hue", "size"))):
        found, own = read_factors(str(tmp_path / name))
        assert (np.asarray(found).tolist(), own) == (FACTORS.tolist(), names)
    each, _ = read_factors(str(tmp_path / "each.npz"))
    assert check_factors(each).names == ("hue", "size")
    renamed, own = read_factors(str(tmp_path / "f.npy"), factor_names=("a", "b"))
    assert check_factors(renamed, own).names == ("a", "b")


def test_a_column_of_lists_is_a_vector_for_each_sample(tmp_path: Path) -> None:
    pd.DataFrame({"embedding": list(CODES), "file": list("abcdef")}).to_parquet(tmp_path / "a.parquet")
    found = read_codes(str(tmp_path / "a.parquet"))
    assert np.array_equal(np.asarray(found.codes), CODES)
    assert "left out: file" in found.notes[0]
    nested = np.random.default_rng(0).normal(size=(6, 3, 2))
    pd.DataFrame({"tokens": [[list(unit) for unit in row] for row in nested]}).to_parquet(tmp_path / "b.parquet")
    assert np.array_equal(np.asarray(read_codes(str(tmp_path / "b.parquet")).codes), nested)


def test_text_and_categories_are_factors(tmp_path: Path) -> None:
    shapes = ["cube", "oval", "cube", "ball", "ball", "oval"]
    frame = pd.DataFrame({"shape": pd.Categorical(shapes), "size": FACTORS[:, 1]})
    for name, write in (("a.parquet", frame.to_parquet), ("a.csv", lambda path: frame.to_csv(path, index=False))):
        write(tmp_path / name)
        found = check_factors(read_factors(str(tmp_path / name))[0])
        assert found.levels[:, 0].tolist() == [1, 2, 1, 0, 0, 2]
        assert found.levels[:, 1].tolist() == FACTORS[:, 1].tolist()


def test_empty_cells_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("hue,size\n0,1\n,1\n1,0\n")
    found = read_factors(str(tmp_path / "a.csv"))[0]
    assert np.isnan(np.asarray(found)).tolist() == [[False, False], [True, False], [False, False]]


def test_a_file_and_a_checkpoint_are_told_apart() -> None:
    assert all(map(is_table, ("a.npy", "b/c.NPZ", "a.npz:z", "a.csv", "a.parquet")))
    assert not any(map(is_table, ("quickstart@best", "runs/a/checkpoint", "s3://bucket/checkpoint", "quickstart@1")))


def objects(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def short(path: Path) -> None:
    np.save(path, CODES)
    path.write_bytes(path.read_bytes()[:-8])


def half(path: Path) -> None:
    np.savez(path, codes=CODES, factors=FACTORS)
    path.write_bytes(path.read_bytes()[:300])


def damaged(path: Path) -> None:
    """An .npz whose first packed bytes are no block."""
    np.savez_compressed(path, codes=CODES)
    content = path.read_bytes()
    start = 30 + sum(int.from_bytes(content[place : place + 2], "little") for place in (26, 28))  # of the packed bytes
    path.write_bytes(content[:start] + b"\xff" * 4 + content[start + 4 :])


def unclosed(path: Path) -> None:
    """A .npy whose head lacks a bracket."""
    np.save(path, CODES)
    path.write_bytes(path.read_bytes().replace(b")", b" ", 1))


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("absent.npy", lambda path: None, ["there is no file", ".parquet"]),
        ("many.npz", lambda path: np.savez(path, a=CODES, b=FACTORS), ["2 arrays", "a (6, 3), b (6, 2)", ":KEY"]),
        ("none.npz", lambda path: np.savez(path), ["0 arrays"]),
        ("objects.npy", objects, ["no array of numbers"]),
        ("short.npy", short, ["short.npy cannot be read"]),
        ("half.npz", half, ["half.npz cannot be read"]),
        ("damaged.npz", damaged, ["damaged.npz cannot be read"]),
        ("unclosed.npy", unclosed, ["unclosed.npy cannot be read"]),
        ("quote.csv", text('a,b\n"1,2\n' + "3,4\n" * 40_000), ["quote.csv cannot be read", "field limit"]),
        ("head.csv", text("a,b\n"), ["names a, b, but no rows"]),
        ("half.npy", text("\x93NUMPY"), ["no array of numbers", "numpy.save"]),
        ("words.csv", text("file,label\na,b\nc,d\n"), ["no numeric columns", "file, label"]),
        ("empty.csv", text(""), ["no lines"]),
        ("ragged.csv", text("a,b\n1,2\n3\n"), ["its row 3 has 1 values"]),
        ("twice.csv", text("a,a\n1,2\n"), ["same name"]),
        ("latin.csv", lambda path: path.write_bytes(b"\xe9\n1\n"), ["cannot be read"]),
        ("damaged.parquet", text("PAR1"), ["damaged.parquet cannot be read"]),
        (
            "ragged.parquet",
            lambda path: pd.DataFrame({"z": [[1.0], [1.0, 2.0]]}).to_parquet(path),
            ["column z must have one length, found 1, 2"],
        ),
        (
            "two.parquet",
            lambda path: pd.DataFrame({"z": [[1.0], [2.0]], "y": [1, 2]}).to_parquet(path),
            ["column of lists beside others (z, y)"],
        ),
    ],
)
def test_a_file_that_cannot_serve_says_why(
    tmp_path: Path, name: str, write: Callable[[Path], Any], words: list[str]
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError) as refused:
        read_codes(str(tmp_path / name))
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_or_column_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", z=CODES)
    with pytest.raises(DataError, match=r"no array y: .*z \(6, 3\)"):
        read_codes(f"{tmp_path}/a.npz:y")
    with pytest.raises(DataError, match=r"no array y"):
        read_factors(f"{tmp_path}/a.npz:y")
    WRITERS["a.csv"](tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no column shape .*z0, z1, z2, hue, size"):
        read_codes(str(tmp_path / "a.csv"), factor_names=("hue", "shape"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["a.parquet"](tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install pyarrow.*or save"):
        read_codes(str(tmp_path / "a.parquet"))
