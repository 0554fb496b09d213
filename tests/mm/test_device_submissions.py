"""What an access of a device queues, in order, and how often it waits: exact, and without time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.devices.base import Bytes, OutOfDeviceMemory, Stream
from gpudedup.devices.host import HostDevice
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.memory import device_queue

from .common import PAGE, page, rows

LOAD, STORE, ADD, SET, COPY = "load_pages", "store_pages", "add_words", "set_words", "copy_pages"
WAIT = "finish"


class Recorder(HostDevice):
    """A host device that notes its kernels and waits, and which copies leave pinned memory.

    :ivar work: kernels and waits, in order
    :ivar copies: uploads and downloads
    :ivar pageable: those of them whose array on the host is not pinned
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: list[str] = []
        self.copies = self.pageable = 0
        self._pinned: list[Bytes] = []

    def pinned(self, size: int) -> Bytes:
        """Allocate memory that counts as pinned."""
        self._pinned.append(super().pinned(size))
        return self._pinned[-1]

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy bytes to the device."""
        self._note(source)
        super().upload(address, source, stream)

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Copy bytes from the device."""
        self._note(target)
        super().download(target, address, stream)

    def _note(self, array: npt.NDArray[Any]) -> None:
        self.copies += 1
        self.pageable += not any(np.shares_memory(array, held) for held in self._pinned)

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Run a kernel."""
        self.work.append(kernel)
        super().launch(kernel, blocks, arguments, stream)

    def finish(self, event: float) -> None:
        """Wait."""
        self.work.append(WAIT)
        super().finish(event)

    def take(self) -> list[str]:
        """Return the kernels and waits since the last call."""
        taken, self.work = self.work, []
        return taken


class Place:
    """A manager of one recording device, and a heap of 200 pages of which 150 hold bytes there."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or Recorder()
        self.mm = MemoryManager(PAGE, device_engine=[self.recorder])
        self.device = self.mm.device(0)
        self.heap = self.mm.create("heap", pages=200)
        self.mm.write(self.heap, range(150), page(2))
        assert self.mm.migrate(self.heap, range(150), device=0).all()
        self.recorder.take()
        self.recorder.copies = self.recorder.pageable = 0


ACCESSES: dict[str, tuple[str, Callable[[Place], object]]] = {
    "load": (LOAD, lambda p: p.device.read(p.heap, [0, 70, 149])),
    "store": (STORE, lambda p: p.device.write(p.heap, [0, 70, 149], b"abc", offset=7)),
    "add": (ADD, lambda p: p.device.atomic_add(p.heap, [0, 70, 149], 3, 5)),
}


@pytest.mark.parametrize("access", ACCESSES)
def test_a_fault_is_one_submission_and_one_wait(access: str) -> None:
    place = Place()
    kernel, act = ACCESSES[access]
    act(place)
    # The directory, a branch, three leaves and three entries are new: one kernel sets them.
    assert place.recorder.take() == [kernel, WAIT, SET, kernel, WAIT]
    act(place)
    assert place.recorder.take() == [kernel, WAIT]
    place.mm.check()
    place.recorder.take()
    assert place.mm.counters.device_faults == 3
    expected = page(2).copy()
    if access == "store":
        expected[7:10] = np.frombuffer(b"abc", np.uint8)
    if access == "add":
        expected.view(np.uint64)[3] += np.uint64(10)
    assert rows(place.mm.read(place.heap, [0, 70, 149])) == rows([expected] * 3)


def test_what_a_fault_brings_is_waited_for_before() -> None:
    place = Place()
    other = place.mm.create("on the host", pages=3)
    place.mm.write(other, range(3), page(3))
    assert rows(place.device.read(other, [1])) == rows([page(3)])
    # Its bytes go to a replica.
    assert place.recorder.take() == [LOAD, WAIT, STORE, WAIT, SET, LOAD, WAIT]
    child = place.mm.fork(place.heap)
    place.recorder.take()
    place.device.write(child, [5], b"abc", offset=0)
    # COW is broken by a copy within the device.
    assert place.recorder.take() == [STORE, WAIT, COPY, WAIT, SET, STORE, WAIT]
    place.device.read(place.heap, [5])
    place.recorder.take()
    place.device.write(place.heap, [5], b"def", offset=0)
    assert place.recorder.take() == [STORE, WAIT, SET, STORE, WAIT], "no other alias is left"
    place.mm.check()


def test_copies_of_accesses_and_faults_leave_pinned_memory() -> None:
    place = Place()
    place.device.read(place.heap, [0])
    assert place.recorder.pageable == 1, "a new directory"
    for _, act in ACCESSES.values():
        act(place)
    assert place.recorder.copies > 12
    assert place.recorder.pageable == 1
    place.recorder.copies = 0
    place.device.read(place.heap, [0, 70], size=8)
    assert place.recorder.copies == 2, "one up, one down"


@pytest.mark.parametrize("least", [True, False])
def test_where_scratch_memory_is_little_a_fault_waits_more_often(
    least: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_queue, "SCRATCH_BYTES", 0 if least else 1 << 15)
    place = Place()
    index = list(range(150))
    before = rows(place.device.read(place.heap, index))
    assert before == rows([page(2)] * 150)
    more = place.recorder.take()
    assert more.count(WAIT) > 4
    place.device.write(place.heap, index, np.arange(150, dtype=np.uint8)[:, None], offset=9)
    expected = np.stack([page(2)] * 150)
    expected[:, 9] = np.arange(150)
    assert rows(place.mm.read(place.heap, index)) == rows(expected)
    held = expected.view(np.uint64)[:, 1].tolist()
    assert place.device.atomic_add(place.heap, index, 1, 1).tolist() == held
    place.mm.check()


class Short(Recorder):
    """A recorder that has no memory for one launch; it ends what would go on for ever.

    :ivar fails: the kernel whose next launch fails; empty: none
    """

    fails = ""

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Run a kernel, or fail."""
        assert len(self.work) < 100, "an access that never ends"
        if kernel == self.fails:
            self.fails = ""
            raise OutOfDeviceMemory("CUDA_ERROR_OUT_OF_MEMORY")
        super().launch(kernel, blocks, arguments, stream)


def test_links_that_an_error_kept_from_the_device_are_set_by_the_next_fault() -> None:
    recorder = Short()
    place = Place(recorder)
    recorder.fails = SET
    assert rows(place.device.read(place.heap, [0, 70])) == rows([page(2)] * 2)
    assert place.mm.counters.remote == 2, "the host did what the device lacks memory for"
    assert place.device.table.leaves_used == 2
    recorder.take()
    assert rows(place.device.read(place.heap, [0, 70])) == rows([page(2)] * 2)
    assert recorder.take() == [LOAD, WAIT, SET, LOAD, WAIT]
    assert place.mm.counters.remote == 2
    place.mm.check()
    place.mm.drop(place.heap)
    assert place.device.table.leaves_used == 0
