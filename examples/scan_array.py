"""Which pages of an array are equal, and how much memory would sharing them save?

The array may lie in host memory (NumPy, anything with DLPack) or in a GPU's (CuPy, PyTorch). There
it is read in place: of its pages only those cross the bus that do not fit beside it for comparison.
"""

from __future__ import annotations

import numpy as np

import gpudedup as gd

PAGE_SIZE = 4096
MIB = 1 << 20


def report(scan: gd.Scan) -> None:
    """Print what a scan found: how much is equal, and some pages with the first one like them."""
    totals = scan.totals
    print(f"{scan.engine.name}: {scan.engine.device}")
    print(f"  {totals.pages:,} pages, of which {totals.zero_frames:,} are zero", end="")
    print(f" and {totals.sharing_frames:,} equal an earlier page")
    print(f"  sharing saves {totals.saved_bytes / MIB:.1f} of {totals.bytes / MIB:.1f} MiB")
    row, first = (scan.pages.column(name).to_numpy() for name in ("row", "representative"))
    # The page table names for every page the first one with its bytes; zero pages are a class.
    shared = np.flatnonzero((row != first) & scan.is_sharing)
    for at in shared[:: len(shared) // 3]:
        print(f"  page {row[at]} equals page {first[at]}")


def main() -> None:
    """Scan pages of noise, of which some are zero and some copies, where they lie."""
    pages = np.random.default_rng(7).integers(0, 256, (4096, PAGE_SIZE), dtype=np.uint8)
    pages[:1000] = 0
    pages[3000:4000] = pages[2000:3000]
    report(gd.scan(pages, backend="cpu"))
    try:
        # Asked for by name, the engine says why it cannot be used; auto would take the CPU.
        report(gd.scan(pages, backend="cuda"))
    except gd.GpudedupError as error:
        print(f"No scan on a GPU: {error}")
        return
    import cupy

    report(gd.scan(cupy.asarray(pages)))


if __name__ == "__main__":
    main()
