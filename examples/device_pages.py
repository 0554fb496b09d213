"""What happens when a device loads and stores the pages that processes share?

The device walks page tables in its own memory. What it finds no entry for is a fault: the host
brings the page and enters it. What the host writes or moves, it invalidates on the device first.
Where there is no GPU, host memory stands for the device's, with the same page tables and faults.
"""

from __future__ import annotations

import numpy as np

import gpudedup as gd

PAGES = 64


def show(mm: gd.MemoryManager, what: str) -> None:
    """Print the device's faults, the entries taken from it, its pages, all frames, and replicas."""
    now = mm.counters
    numbers = (now.device_faults, now.invalidations, now.mirrored, now.frames, now.replicas)
    print(f"{what:48}", *(f"{number:8,}" for number in numbers))


def main() -> None:
    """Load, store and add from a device to pages that two processes share."""
    mm = gd.MemoryManager(page_size=4096, devices=1, device_engine="auto")
    device = mm.device(0)
    print(f"device 0 is {device.name}\n")
    print(f"{'':48}   faults  invalid mirrored   frames replicas")
    data = np.random.default_rng(3).integers(0, 256, (PAGES, 4096), dtype=np.uint8)
    first, second = (mm.create("array", pages=PAGES, owner=f"process[{i}]") for i in (1, 2))
    mm.write(first, range(PAGES), data)
    mm.write(second, range(PAGES), data)
    mm.merge()
    show(mm, "two processes share equal pages")

    assert (device.read(first, range(PAGES)) == data).all()
    show(mm, "the device loads all: a replica of each")
    device.read(first, range(PAGES))
    show(mm, "... and again: its entries serve the loads")

    device.write(first, range(8), b"result", offset=0)
    show(mm, "it stores to 8: the sharing of these breaks")
    assert (mm.read(second, range(8)) == data[:8]).all()

    mm.write(first, range(8, 16), b"input", offset=0)
    show(mm, "the host stores to 8 others: it invalidates")

    before = device.atomic_add(first, [20, 20, 21], word=0, value=1)
    show(mm, "atomics: the device holds 2 pages exclusively")
    now = int.from_bytes(mm.read(first, 20, size=8).tobytes(), "little")
    assert now == min(before[0], before[1]) + 2
    show(mm, "the host loads one: exclusive access ends")
    mm.check()


if __name__ == "__main__":
    main()
