from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from raydis.data.folder import FileKind, counted, find_files, name_all, report_skipped, shown, sort_out
from raydis.errors import DataError

PNG = FileKind("pictures", lambda name: name.endswith(".png"))


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder: Path) -> tuple[list[str], dict[str, int]]:
    files, skipped = find_files("set", folder, PNG)
    assert all(path.read_bytes() == b"x" for path in files.values())
    return list(files), dict(skipped)


def test_files_are_ordered_by_their_relative_names(tmp_path: Path) -> None:
    write(tmp_path / "b.png", tmp_path / "a" / "z.png", tmp_path / "a.png", tmp_path / "a" / "c" / "b.png")
    assert found(tmp_path) == (["a.png", "a/c/b.png", "a/z.png", "b.png"], {})


@pytest.mark.parametrize(
    "name",
    [
        "._a.png",
        ".a.png",
        "__MACOSX/set/a.png",
        "set/__macosx/._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "set/.Trash-1000/files/a.png",
        ".git/objects/a.png",
        "set/@/.b/c/a.png",
    ],
)
def test_hidden_files_are_skipped_in_folders_and_among_keys(tmp_path: Path, name: str) -> None:
    write(tmp_path / "kept.png", tmp_path / name)
    assert found(tmp_path) == (["kept.png"], {"hidden": 1})
    assert sort_out(["kept.png", name], PNG) == (["kept.png"], {"hidden": 1})


def test_what_is_skipped_is_counted_by_kind(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "a.txt", "b/c.TXT", "d", "e.png")))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    os.mkfifo(tmp_path / "pipe.png")
    names, skipped = found(tmp_path)
    assert names == ["e.png"]
    assert skipped == {"hidden": 3, ".txt": 2, "without suffix": 1, "broken links": 2, "special files": 1}


def test_a_data_set_in_a_hidden_folder_is_not_hidden(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "set" / "a.png")
    assert found(tmp_path / ".cache" / "set") == (["a.png"], {})


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "far" / "x.png", tmp_path / "far" / "deep" / "y.png", tmp_path / "set" / "own" / "z.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "file.png").symlink_to(tmp_path / "far" / "x.png")
    names = ["file.png", "linked/deep/y.png", "linked/x.png", "own/z.png"]
    assert found(tmp_path / "set") == (names, {})
    (tmp_path / "door").symlink_to(tmp_path / "set")
    assert found(tmp_path / "door") == (names, {})


def circle_to_itself(folder: Path) -> None:
    (folder / "a" / "again").symlink_to(folder / "a")


def circle_to_the_root(folder: Path) -> None:
    (folder / "a" / "up").symlink_to("..")


def circle_above_the_root(folder: Path) -> None:
    write(folder.parent / "other" / "x.png")
    (folder / "a" / "out").symlink_to(folder.parent)


def circle_of_two(folder: Path) -> None:
    (folder / "a" / "to_b").symlink_to(folder / "b")
    (folder / "b" / "to_a").symlink_to(folder / "a")


def two_names_of_one(folder: Path) -> None:
    (folder / "0").symlink_to(folder / "b")


@pytest.mark.parametrize(
    "link", [circle_to_itself, circle_to_the_root, circle_above_the_root, circle_of_two, two_names_of_one]
)
def test_no_circle_of_links_repeats_a_file(tmp_path: Path, link: Callable[[Path], None]) -> None:
    folder = tmp_path / "set"
    write(folder / "a" / "x.png", folder / "b" / "y.png")
    link(folder)
    names, skipped = found(folder)
    assert names == ["a/x.png", "b/y.png"]  # by the names that the folders have themselves
    assert set(skipped) == {"links to folders that are read already"}


def test_a_circle_outside_of_the_tree_ends_too(tmp_path: Path) -> None:
    write(tmp_path / "far" / "x.png", tmp_path / "set" / "a.png")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "far")
    for name in ("one", "two"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "far")
    assert found(tmp_path / "set") == (["a.png", "one/x.png"], {"links to folders that are read already": 2})


def test_names_are_any_bytes(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("a#b%20?.png", "画像 1.png", "läufe/x.png")))
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    names, skipped = found(tmp_path)
    assert len(names) == 4
    assert not skipped
    assert sorted(shown(name) for name in names) == ["a#b%20?.png", "caf\\udce9.png", "läufe/x.png", "画像 1.png"]


def test_a_folder_that_may_not_be_read_is_an_error_not_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str | Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, who may read everything
    with pytest.raises(DataError, match=rf"set: cannot read the folder {tmp_path} \(Permission denied\)"):
        find_files("set", tmp_path, PNG)


def test_what_was_skipped_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report_skipped("set", "fol\nder", PNG, 7, Counter({"hidden": 2, ".txt": 11, ".a": 2}))
        report_skipped("set", "folder", PNG, 7, Counter())
    assert caplog.messages == ["set: number of pictures in fol\\nder: 7; skipped: .txt (11), .a (2), hidden (2)"]


def test_many_broken_files_are_named_up_to_a_number() -> None:
    assert name_all({"a": "is empty", "b": "is damaged"}) == "a is empty; b is damaged"
    many = name_all({str(number): "is empty" for number in range(25)})
    assert many.endswith("; 19 is empty; and 5 more")
    assert counted(Counter()) == ""
