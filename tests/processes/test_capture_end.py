"""How captures end: processes run on, ended ones are counted, refusals name a remedy."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpudedup.errors import ImageError, OutputError
from gpudedup.processes.capture import capture
from gpudedup.processes.tracer import thread_states

from .children import ANSWERING, PAGE, child, may_trace, read, until

NOBODY = 65534


def test_stopped_during_the_capture_and_running_after_it(tmp_path: Path) -> None:
    states: list[set[str]] = []
    code = "threading.Thread(target=signal.pause, daemon=True).start()\n" + ANSWERING
    with child(code) as one:
        captured = capture(
            [one.pid],
            str(tmp_path / "dump"),
            stop=True,
            progress=lambda done, total: states.append(set(thread_states(one.pid).values())),
        )
        assert one.ask("?") == {"awake": True}
    assert states == [{"t" if may_trace() else "T"}] * len(states)
    assert states
    assert not any("running" in note for note in captured.notes)


def fail(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_running_again_after_every_failure(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with child(ANSWERING) as one:
        with pytest.raises(KeyboardInterrupt):
            capture([one.pid], str(path), stop=True, progress=fail)
        assert one.ask("?") == {"awake": True}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
                capture([one.pid], str(path), stop=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert one.ask("?") == {"awake": True}
        assert not list(tmp_path.iterdir())
        path.write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            capture([one.pid], str(path), stop=True)
        assert one.ask("?") == {"awake": True}
    assert path.read_text() == "mine"


@pytest.mark.parametrize("stop", [False, True])
def test_room_is_asked_for_before_anything_is_read(
    tmp_path: Path, small_disk: Path, stop: bool
) -> None:
    begun: list[int] = []
    pages = (4 << 20) // PAGE
    with child(f"at = map({pages})\nctypes.memset(at, 7, {pages} * PAGE)\n" + ANSWERING) as one:
        with pytest.raises(OutputError, match=r"out: needs \d+ bytes, \d+ are free") as caught:
            capture(
                [one.pid],
                str(small_disk / "out"),
                stop=stop,
                progress=lambda done, _: begun.append(done),
            )
        assert one.ask("?") == {"awake": True}
        needed = int(caught.value.reason.split()[1])
        whole = capture([one.pid], str(tmp_path / "dump"), stop=stop)
    assert not begun
    assert not list(small_disk.iterdir())
    assert pages * (PAGE + 26) <= needed
    # The kernel counts pages of zeros, which many share, as populated but not as resident.
    assert needed <= whole.pages * (PAGE + 26) <= (tmp_path / "dump").stat().st_size


def test_what_was_stopped_before_stays_so(tmp_path: Path) -> None:
    with child(ANSWERING) as one:
        one.hold()
        capture([one.pid], str(tmp_path / "dump"), stop=True)
        # Let go of, it goes back to its stop through the kernel, without an instruction of its own.
        until(lambda: set(thread_states(one.pid).values()) == {"T"})
        os.kill(one.pid, signal.SIGCONT)
        assert one.ask("?") == {"awake": True}


def test_a_process_that_ends_meanwhile_is_kept_as_far_as_it_was_read(tmp_path: Path) -> None:
    pages = (160 << 20) // PAGE
    with child(f"at = map({pages})\nctypes.memset(at, 7, {pages} * PAGE)\ntell()\nhear()") as one:
        reports: list[tuple[int, int]] = []

        def end(done: int, total: int) -> None:
            reports.append((done, total))
            if done:
                one.kill()

        captured = capture([one.pid], str(tmp_path / "dump"), progress=end)
    assert captured.pages == read(tmp_path / "dump").num_rows == (64 << 20) // PAGE
    assert captured.absent.unreadable >= pages - captured.pages
    assert captured.pages + captured.absent.unreadable == reports[-1][0] >= pages
    (loss,) = captured.losses
    assert loss.startswith(f"pid {one.pid}: {captured.absent.unreadable} pages of ")
    assert loss.endswith("the process ended")


def test_the_others_are_captured_whole(tmp_path: Path) -> None:
    with child(ANSWERING) as one, child(ANSWERING) as two:
        two.hold()
        captured = capture(
            [one.pid, two.pid], str(tmp_path / "dump"), progress=lambda done, total: one.kill()
        )
        alone = capture([two.pid], str(tmp_path / "alone"))
    assert captured.pages == alone.pages
    assert captured.absent.unreadable > 100
    assert len(captured.losses) == 1
    with child(ANSWERING) as three, pytest.raises(ImageError, match="the process ended"):
        capture([three.pid], str(tmp_path / "none"), progress=lambda done, total: three.kill())
    assert not (tmp_path / "none").exists()
    gone = capture_error(one.pid, tmp_path)
    assert str(gone) == f"pid {one.pid}: no such process"
    with child(ANSWERING) as two:
        captured = capture([one.pid, two.pid], str(tmp_path / "rest"))
    assert captured.losses == [f"pid {one.pid}: no such process"]


def capture_error(pid: int, directory: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        capture([pid], str(directory / "none"))
    return caught.value


def test_a_kernel_thread_has_nothing(tmp_path: Path) -> None:
    status = Path("/proc/2/status")
    if not status.exists() or "Kthread:\t1" not in status.read_text():
        pytest.skip("pid 2 is no kernel thread here")
    assert "kernel thread" in str(capture_error(2, tmp_path))
    with pytest.raises(ImageError, match="kernel thread"):
        capture([2], str(tmp_path / "none"), stop=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's privileges within the context; as another user, do nothing."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        # seteuid cleared the dumpable flag.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def test_no_permission_is_said_with_a_way_out(tmp_path: Path) -> None:
    if Path("/proc/1").stat().st_uid:
        pytest.skip("pid 1 is not root's here")
    with as_nobody():
        error = capture_error(1, tmp_path)
    assert str(error).startswith("pid 1: no permission to read /proc/1/")
    assert "ptrace_scope" in str(error)


@pytest.mark.usefixtures("frames_seen")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_privileges_frames_are_unknown_not_equal() -> None:
    unprivileged = f"os.setuid({NOBODY})\nlibc.prctl(4, 1, 0, 0, 0)\n"
    with tempfile.TemporaryDirectory() as name, child(unprivileged + ANSWERING) as one:
        directory = Path(name)
        os.chown(directory, NOBODY, NOBODY)
        one.hold()
        privileged = capture([one.pid], str(directory / "root"), stop=True)
        with as_nobody():
            captured = capture([one.pid], str(directory / "nobody"), stop=True)
        table, root = read(directory / "nobody"), read(directory / "root")
        assert table.column("content").equals(root.column("content"))
    assert table.column("frame").null_count == table.column("node").null_count == captured.pages
    assert captured.pages == privileged.pages
    (note,) = captured.notes
    assert "CAP_SYS_ADMIN" in note
