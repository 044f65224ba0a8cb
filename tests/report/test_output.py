"""Output files: refused before the work, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.errors import ConfigError, OutputError
from raydis.report import output
from raydis.report.grids import save_picture
from raydis.report.output import PICTURE_FORMATS, check_output, replace_file


def test_a_path_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("new.png", "old.png", "a/b/new.PNG"):
        check_output(tmp_path / name, suffixes=PICTURE_FORMATS)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_a_relative_path_is_checked_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("a.html"))
    check_output(Path("new/a.html"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "found"), [("walk", "'none'"), ("walk.gif", "'.gif'"), (".png", "'none'"), ("a.png/walk.pdf", "'.pdf'")]
)
def test_a_picture_needs_a_suffix_that_is_written(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"found suffix {found}, use one of \.png, \.jpg, \.jpeg, \.webp"):
        check_output(tmp_path / name, suffixes=PICTURE_FORMATS)


def test_a_folder_or_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name, kind in (("a.png", "folder"), ("b.png", "device")):
        with pytest.raises(ConfigError, match=rf"{name} is a {kind}: name a file"):
            check_output(tmp_path / name)
    with pytest.raises(ConfigError, match="-o /dev/null is a device"):
        check_output(Path("/dev/null"))


def test_a_path_through_a_file_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"cannot write .*/file/a\.png: Not a directory: a part of the path is a file"
    ):
        check_output(tmp_path / "file" / "a.png")
    with pytest.raises(OutputError, match=r"File name too long: choose a shorter one"):
        check_output(tmp_path / f"{'x' * 300}.png")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    asked: list[Path] = []

    def refuse(*, dir: Path) -> None:
        asked.append(dir)
        raise OSError(number, os.strerror(number), str(dir))

    monkeypatch.setattr(output.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=rf"cannot write .*/new/a\.png: {os.strerror(number)}: c?"):
        check_output(tmp_path / "new" / "a.png")
    assert asked == [tmp_path]  # the folder that is there


def test_a_disk_that_takes_the_name_and_refuses_the_bytes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "wb")  # noqa: SIM115  # the function under test closes it
    monkeypatch.setattr(output.tempfile, "TemporaryFile", lambda dir: full)
    with pytest.raises(OutputError, match="No space left on device: make room"):
        check_output(tmp_path / "a.png")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")

    def fill_the_disk() -> None:
        with replace_file(path) as file:
            file.write(b"half of ")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*/a\.html: No space left on device"):
        fill_the_disk()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.html", "old")]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_a_picture_has_the_format_that_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    save_picture(Image.fromarray(np.full((8, 8, 3), 200, np.uint8)), tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind
        assert abs(int(np.asarray(picture)[4, 4, 0]) - 200) <= 2
