"""How small are several images in one file, and how is one of them read again?

A merged dump keeps equal pages once. It is an Arrow file and an image like any other: every
command and ``gpudedup.scan`` take it. Mappings are read in place, and any of the images can be
restored, byte for byte.
"""

from __future__ import annotations

import filecmp
import tempfile
from pathlib import Path

import numpy as np

import gpudedup as gd

MIB = 1 << 20


def main() -> None:
    """Merge two dumps, read pages of one mapping, restore one dump and compare it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        monday, friday = folder / "monday.arrow", folder / "friday.arrow"
        # Images of one seed have the same contents, as far as both have so many.
        gd.generate(gd.Recipe(pages=3000, owners=2, seed=1), monday)
        gd.generate(gd.Recipe(pages=4000, owners=2, seed=1), friday)

        both = folder / "both.arrow"
        done = gd.merge_images([monday, friday], both)
        before = monday.stat().st_size + friday.stat().st_size
        print(f"two dumps of {before / MIB:.1f} MiB became a file of {done.size / MIB:.1f} MiB:")
        print(f"{done.pages:,} pages in {done.frames:,} frames\n")

        with gd.open_merged(both) as dump:
            # Nothing is read before it is asked for.
            for number, mapping in enumerate(dump.mappings):
                print(f"mapping {number}: {mapping.owner}, {len(dump[number]):,} pages")
            heap = dump[3]
            pages = heap.pages(heap.index[:100])
            used = np.flatnonzero(pages.any(axis=1))
            print(f"of the first 100 pages of mapping 3 {len(pages) - len(used)} are zero")
            at = int(heap.index[used[0]]) * dump.page_size
            print(f"bytes {at} to {at + 7} of it: {heap.read(at, 8).hex(' ')}\n")

        damage = gd.verify(both).damage
        print("verified: " + ("every frame has its digest" if not damage else damage[0]))
        again = folder / "again.arrow"
        gd.restore(both, again, input=1)
        same = filecmp.cmp(friday, again, shallow=False)
        print(f"restored: input 1 is {'byte for byte' if same else 'NOT'} what was merged")


if __name__ == "__main__":
    main()
