"""What does the memory manager do when pages become equal, and when one of them is written?

It holds pages with real bytes. A merge lets equal ones share a frame, a store breaks the sharing,
a fork shares everything until then. The counters have KSM's names where KSM has them.
"""

from __future__ import annotations

import numpy as np

import gpudedup as gd

PAGES = 256


def show(mm: gd.MemoryManager, what: str) -> None:
    """Print the counters: pages, frames, merged frames, frames saved, frames taken by stores."""
    now = mm.counters
    numbers = (now.pages, now.frames, now.pages_shared, now.pages_sharing, now.new_frames)
    print(f"{what:44}", *(f"{number:8,}" for number in numbers))


def main() -> None:
    """Let three workers share pages, and break some."""
    mm = gd.MemoryManager(page_size=4096)
    print(f"{'':44}    pages   frames   shared  sharing      new")
    table = np.random.default_rng(1).integers(0, 256, (PAGES, 4096), dtype=np.uint8)
    workers = [mm.create("heap", pages=PAGES, owner=f"worker[{i}]") for i in range(3)]
    for worker in workers:
        mm.write(worker, range(PAGES), table)
    show(mm, "three workers load the same table")

    report = mm.merge(gd.MergePolicy(max_page_sharing=256))
    show(mm, f"merged: {report.merged} pages moved to another's frame")

    mm.write(workers[0], range(10), b"changed", offset=100)
    show(mm, "worker 0 writes 7 bytes to 10 pages")
    # The others still read what was merged.
    assert (mm.read(workers[1], range(10)) == table[:10]).all()

    child = mm.fork(workers[1], owner="worker[3]")
    show(mm, "worker 1 forks: no frame is taken")
    mm.write(child, range(20), table[20:40])
    show(mm, "the child overwrites 20 pages")

    with mm.pin(workers[2], [0], write=True):
        # A device may write to its frame by DMA now: no merge takes it until it is unpinned.
        show(mm, "worker 2 pins a page for writing")
        again = mm.merge()
        show(mm, f"merged again: {again.merged} pages; {again.pinned} pinned, left alone")

    mm.drop(workers[0])
    show(mm, "worker 0 exits")
    mm.check()


if __name__ == "__main__":
    main()
