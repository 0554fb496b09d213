"""What do accesses of a device cost, through its own page tables?

Runs on a GPU where one is usable, else on the host device; the record names it. Loads, stores and
atomics of 8 bytes whose entries are present; loads that fault, all at once and a page at a time;
and stores that break COW of all pages of a forked mapping on the device, beside the kernel that
copies as many pages there and does nothing else. The host's own loads and stores of pages in its
memory stand beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np

import gpudedup as gd
from gpudedup.devices.select import choose_devices
from gpudedup.mm.memory.device_pool import DevicePool
from gpudedup.mm.memory.device_queue import DeviceQueue

WORD = np.full(8, 3, np.uint8)

SINGLE = 2048
"""Pages of the accesses that take one page at a time."""


class Work:
    """A mapping on the device, one on the host, and two runs of pages in device memory."""

    def __init__(self, size: int) -> None:
        n = size // harness.PAGE_SIZE
        self.mm = gd.MemoryManager(harness.PAGE_SIZE, devices=1)
        self.device = self.mm.device(0)
        self.index = np.arange(n)
        page = np.ones(harness.PAGE_SIZE, np.uint8)
        self.there = self.mm.create("on the device", pages=n)
        self.here = self.mm.create("on the host", pages=n)
        for mapping in (self.there, self.here):
            self.mm.write(mapping, self.index, page)
        self.mm.migrate(self.there, self.index, device=0)
        (device,) = choose_devices("auto", 1)
        self._queue = DeviceQueue(device, 1 << 20)
        self._memory = DevicePool(self._queue)
        self.to = self._addresses(n)
        self.at = self._addresses(n)
        self._memory.write(self.to, np.broadcast_to(page, (n, len(page))), 0)
        self._memory.write(self.at, np.broadcast_to(page, (n, len(page))), 0)

    def _addresses(self, n: int) -> Any:
        first = self._memory.allocate(n * harness.PAGE_SIZE)
        return np.uint64(first) + np.arange(n, dtype=np.uint64) * np.uint64(harness.PAGE_SIZE)

    def copies(self) -> float:
        """Return the seconds of copying pages within the device."""
        return seconds(lambda: self._memory.copy(self.at, self.to, harness.PAGE_SIZE))

    def breaks(self) -> float:
        """Return the seconds of stores that break all pages, without fork and drop."""
        child = self.mm.fork(self.there)
        spent = seconds(lambda: self.device.write(self.there, self.index, WORD, offset=128))
        self.mm.drop(child)
        return spent

    def stores(self) -> float:
        """Return the seconds of stores whose entries are present."""
        return seconds(lambda: self.device.write(self.there, self.index, WORD, offset=128))

    def loads(self) -> float:
        """Return the seconds of loads whose entries are present."""
        return seconds(lambda: self.device.read(self.there, self.index, size=8))

    def faulting_loads(self) -> float:
        """Return the seconds of loads of pages that lie on the device but have no entries."""
        self.stores()
        self.mm.drop(self.mm.fork(self.there))
        return self.loads()

    def single_loads(self) -> float:
        """Return the seconds of loads of SINGLE such pages, one at a time."""
        self.stores()
        self.mm.drop(self.mm.fork(self.there))
        return seconds(lambda: [self.device.read(self.there, i, size=8) for i in range(SINGLE)])

    def atomics(self) -> float:
        """Return the seconds of additions to pages that the device holds exclusively."""
        self.device.atomic_add(self.there, self.index, 0, 1)
        spent = seconds(lambda: self.device.atomic_add(self.there, self.index, 0, 1))
        self.mm.release_exclusive(self.there, self.index)
        return spent

    def brought(self) -> float:
        """Return the seconds of loads that replicate pages of the host to the device."""
        spent = seconds(lambda: self.device.read(self.here, self.index, size=8))
        self.mm.collapse(self.here, self.index)
        return spent

    def host_loads(self) -> float:
        """Return the seconds of the host's loads from its own memory."""
        return seconds(lambda: self.mm.read(self.here, self.index, size=8))

    def host_stores(self) -> float:
        """Return the seconds of the host's stores to its own memory."""
        return seconds(lambda: self.mm.write(self.here, self.index, WORD, offset=128))


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure everything."""
    options = harness.arguments(__doc__, size=1 << 29).parse_args()
    work = Work(options.size)
    candidates = {
        "page copy on the device": work.copies,
        "break by a store of the device": work.breaks,
        "load, entry found": work.loads,
        "load, no entry, page there": work.faulting_loads,
        "load, no entry, page there, one at a time": work.single_loads,
        "load, page brought from the host": work.brought,
        "store, entry found": work.stores,
        "atomic, entry found": work.atomics,
        "load of the host": work.host_loads,
        "store of the host": work.host_stores,
    }
    for run in candidates.values():
        run()
    names = list(candidates)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for at in range(options.rounds):
        for name in names[at % len(names) :] + names[: at % len(names)]:
            spent[name].append(candidates[name]())
    n = len(work.index)
    result = harness.Comparison(
        {"question": "device accesses", "device": work.device.name, "pages": n}, options.size, spent
    )
    result.ratio("break by a store of the device", "page copy on the device")
    print("\n" + "  ".join(f"{k}={v}" for k, v in result.case.items()))
    for name in names:
        pages = SINGLE if candidates[name] == work.single_loads else n
        nanoseconds = float(np.median(spent[name])) / pages * 1e9
        result.ratios[f"{name}: ns per page"] = round(nanoseconds, 1)
    for name, value in result.ratios.items():
        print(f"  {name:58} {value:10.2f}")
    harness.write("mm_devices", __doc__ or "", [result])


if __name__ == "__main__":
    main()
