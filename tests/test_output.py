"""Files appear whole or not at all, on every kind of file system."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gpudedup.errors import OutputError
from gpudedup.output import check_room, reason, whole_file, whole_files


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refuse_unnamed(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stand in for a file system, or a kernel, without ``O_TMPFILE``."""
    open_ = os.open

    def refuse(path: str, flags: int, *rest: int, **how: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return open_(path, flags, *rest, **how)

    monkeypatch.setattr(os, "open", refuse)


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int, *, meanwhile: str = "") -> None:
    def link(source: str, name: str, *, dst_dir_fd: int, **_: object) -> None:
        if meanwhile:
            Path(f"/proc/self/fd/{dst_dir_fd}", name).write_text(meanwhile)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("unnamed", [None, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT])
@pytest.mark.parametrize("linked", [None, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("before", [None, "the one before"])
def test_the_file_appears_at_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unnamed: int | None,
    linked: int | None,
    before: str | None,
) -> None:
    """With and without nameless files and hard links, which the first kind needs."""
    if unnamed:
        refuse_unnamed(monkeypatch, unnamed)
        if linked:
            refuse_links(monkeypatch, linked)
    target = tmp_path / "out"
    if before:
        target.write_text(before)
    with whole_file(target, force=bool(before)) as temporary:
        temporary.write_text("all of it")
        assert (target.read_text() if target.exists() else None) == before
        if not unnamed:
            assert names(tmp_path) == ["out"] * bool(before)
    assert target.read_text() == "all of it"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [None, errno.EPERM])
def test_what_somebody_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    target = tmp_path / "out"
    if number:
        refuse_unnamed(monkeypatch, errno.EOPNOTSUPP)
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


@pytest.mark.parametrize("unnamed", [None, errno.EOPNOTSUPP])
@pytest.mark.parametrize("force", [False, True])
def test_who_owns_the_folder_cannot_lead_the_output_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: int | None, force: bool
) -> None:
    """Whatever has a name in the folder is swapped for a link, as fast as anybody could."""
    if unnamed:
        refuse_unnamed(monkeypatch, unnamed)
    theirs, victim = tmp_path / "theirs", tmp_path / "victim"
    theirs.mkdir()
    victim.write_text("precious")

    def swap() -> None:
        for name in {*names(theirs), "out"}:
            (theirs / name).unlink(missing_ok=True)
            (theirs / name).symlink_to(victim)

    def after_a_swap(call: Callable[..., None]) -> Callable[..., None]:
        def do(*arguments: Any, **named: Any) -> None:
            swap()
            call(*arguments, **named)

        return do

    monkeypatch.setattr(os, "link", after_a_swap(os.link))
    monkeypatch.setattr(os, "replace", after_a_swap(os.replace))
    with suppress(OutputError), whole_file(theirs / "out", force=force) as temporary:
        swap()
        temporary.write_text("ours")
        swap()
    assert victim.read_text() == "precious"
    assert not victim.is_symlink()


def test_the_folder_is_that_of_the_beginning(tmp_path: Path) -> None:
    """Who may rename the folder cannot lead the output into another."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    with whole_file(folder / "out") as temporary:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        temporary.write_text("ours")
    assert names(other) == []
    assert (tmp_path / "moved" / "out").read_text() == "ours"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("leads_to", ["file", "nowhere", os.devnull, "/proc/self/fd/1"])
def test_a_link_is_refused_and_stays(tmp_path: Path, leads_to: str, force: bool) -> None:
    (tmp_path / "file").write_text("before")
    target = tmp_path / "out"
    target.symlink_to(leads_to)
    with pytest.raises(OutputError) as caught, whole_file(target, force=force):
        pytest.fail("work began")
    assert str(caught.value) == f"{target}: is a symbolic link"
    assert str(target.readlink()) == leads_to
    assert (tmp_path / "file").read_text() == "before"
    assert names(tmp_path) == ["file", "out"]


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    """The file has no name while it is written."""
    code = (
        "import os, signal, sys\n"
        "from gpudedup.output import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(bytes(1 << 20))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == []


@pytest.mark.parametrize("unnamed", [None, errno.EOPNOTSUPP])
@pytest.mark.parametrize("force", [False, True])
def test_content_and_name_are_on_the_disk_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: int | None, force: bool
) -> None:
    """The content before the name, then the folder that has the name."""
    if unnamed:
        refuse_unnamed(monkeypatch, unnamed)
    target, calls = tmp_path / "out", []
    fsync = os.fsync
    if force:
        target.write_text("before")

    def note(fd: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        seen = target.read_text() if target.exists() else None
        calls.append((is_folder, os.pread(fd, 9, 0) if not is_folder else b"", seen))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    with whole_file(target, force=force) as temporary:
        temporary.write_text("all of it")
    assert calls == [
        (False, b"all of it", "before" if force else None),
        (True, b"", "all of it"),
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_does_not_reach_the_disk_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A delayed allocation fails when the file is synchronised, not when it is written."""
    (tmp_path / "out").write_text("before")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as caught, whole_file(tmp_path / "out", force=True) as path:
        path.write_text("all of it")
    assert str(caught.value) == f"{tmp_path / 'out'}: {os.strerror(number)}"
    assert (tmp_path / "out").read_text() == "before"
    assert names(tmp_path) == ["out"]


def test_a_file_system_without_fsync_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with whole_file(tmp_path / "out") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "out").read_text() == "x"


def test_several_appear_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]

    def make(meanwhile: str | None) -> None:
        with whole_files(paths) as temporaries:
            for temporary, path in zip(temporaries, paths, strict=True):
                temporary.write_text(path.name)
            assert names(tmp_path) == []
            if meanwhile:
                (tmp_path / meanwhile).write_text("theirs")

    for late in "cba":
        with pytest.raises(OutputError, match=f"{late}: exists already"):
            make(late)
        assert names(tmp_path) == [late]
        assert (tmp_path / late).read_text() == "theirs"
        (tmp_path / late).unlink()
    make(None)
    assert [path.read_text() for path in paths] == ["a", "b", "c"]


def test_all_have_names_before_the_first_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text("old")
    link, links = os.link, []

    def fail_at_last(*arguments: Any, **named: Any) -> None:
        links.append(arguments)
        if len(links) == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        link(*arguments, **named)

    monkeypatch.setattr(os, "link", fail_at_last)
    with pytest.raises(OutputError, match="/b: Input/output error"), whole_files(paths, force=True):
        pass
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert names(tmp_path) == ["a", "b"]


def test_a_name_that_does_not_reach_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fail_on_folders(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(OutputError, match="/out: Input/output error"), whole_file(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_room_is_asked_for(small_disk: Path) -> None:
    free = os.statvfs(small_disk).f_bfree * os.statvfs(small_disk).f_frsize
    check_room(small_disk / "out", free)
    with pytest.raises(OutputError) as caught:
        check_room(small_disk / "out", free + 1)
    assert str(caught.value) == (f"{small_disk / 'out'}: needs {free + 1} bytes, {free} are free")
    check_room("/proc/out", 1)  # tells nothing of its size


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


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes another user")
@pytest.mark.parametrize(("mode", "error"), [(0o555, "out: Permission denied"), (0o333, "")])
def test_permission_to_write_is_all_it_takes(tmp_path: Path, mode: int, error: str) -> None:
    """A folder that may be written but not read has room for an output."""
    code = (
        "import os, sys\n"
        "from gpudedup.output import whole_file\n"
        "os.chdir(sys.argv[1])\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "with whole_file('out') as temporary: temporary.write_text('x')\n"
    )
    tmp_path.chmod(mode)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert error in done.stderr
    assert (done.returncode != 0, names(tmp_path)) == (bool(error), ["out"] * (not error))


def test_a_reason_is_one_line_in_the_systems_words() -> None:
    full = OSError(errno.ENOSPC, "Error writing bytes to file.\nDetail: [errno 28] No space")
    assert reason(full) == os.strerror(errno.ENOSPC)
    assert reason(OSError("no number\n here")) == "no number here"
    assert reason(pa.ArrowInvalid("two\nlines")) == "two lines"
