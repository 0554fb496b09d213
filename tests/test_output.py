"""Files appear whole or not at all, on every kind of file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from gpudedup.errors import OutputError
from gpudedup.output import reason, whole_file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int, *, meanwhile: str = "") -> None:
    def link(source: Path, target: Path) -> None:
        if meanwhile:
            target.write_text(meanwhile)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("force", [False, True])
def test_the_file_appears_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, force: bool
) -> None:
    if number:
        refuse_links(monkeypatch, number)
    target = tmp_path / "out"
    with whole_file(target, force=force) as temporary:
        temporary.write_text("all of it")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_text() == "all of it"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [None, errno.EPERM])
def test_what_somebody_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    target = tmp_path / "out"
    if number:
        refuse_links(monkeypatch, number, meanwhile="theirs")

    def make() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("ours")
            if not number:
                target.write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        make()
    assert target.read_text() == "theirs"
    assert names(tmp_path) == ["out"]


def test_another_failure_of_link_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EIO)
    with pytest.raises(OutputError) as caught, whole_file(tmp_path / "out"):
        pass
    assert str(caught.value) == f"{tmp_path / 'out'}: {os.strerror(errno.EIO)}"
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, FileExistsError, pa.ArrowInvalid])
def test_an_error_of_the_block_passes_and_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "out").write_text("before")

    def make() -> None:
        with whole_file(tmp_path / "out", force=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        make()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "before"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("dir", "is a directory"),
        ("fifo", "not a regular file"),
        ("no/out", "No such file or directory"),
        ("file/out", "Not a directory"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_an_output(tmp_path: Path, path: str, why: str, force: bool) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    target = tmp_path / path
    with pytest.raises(OutputError) as caught, whole_file(target, force=force):
        pass
    assert str(caught.value) == f"{target}: {why}"
    assert names(tmp_path) == ["dir", "fifo", "file"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OutputError, match="not a regular file"), whole_file(os.devnull, force=True):
        pass
    assert Path(os.devnull).is_char_device()


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("n" * 255)) as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["n" * 255]


def test_no_permission_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may write anywhere, so the refusal is simulated.
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OutputError, match="out: Permission denied"), whole_file(tmp_path / "out"):
        pass


def test_a_reason_is_one_line_in_the_systems_words() -> None:
    full = OSError(errno.ENOSPC, "Error writing bytes to file.\nDetail: [errno 28] No space")
    assert reason(full) == os.strerror(errno.ENOSPC)
    assert reason(OSError("no number\n here")) == "no number here"
    assert reason(pa.ArrowInvalid("two\nlines")) == "two lines"
