"""How do I scan memory that gpudedup has no reader for?

Write it as a dump: an Arrow file with one row a page, in the schema that ``gpudedup.schema`` has.
Any Arrow library can write one; here it is pyarrow. The pages are those of a cache that keeps its
objects in two slabs, one of which two processes map.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

import gpudedup as gd
from gpudedup.schema import dump_schema

PAGE_SIZE = 4096


def write_dump(path: Path) -> None:
    """Write pages of three mappings; two of them map the same frames."""
    schema = dump_schema(PAGE_SIZE, {"gpudedup.source": "slabs of a cache"})
    # Whose a page is: each mapping once, and for every row the number of its mapping.
    empty = {"domain": "", "start": 0, "flags": ""}
    mappings = [
        {"owner": "cache[1]", "kind": "shmem", "name": "slab 0", **empty},
        {"owner": "cache[2]", "kind": "shmem", "name": "slab 0", **empty},
        {"owner": "cache[2]", "kind": "anon", "name": "slab 1", **empty},
    ]
    slab = [bytes([number]) * 64 + b"object".ljust(PAGE_SIZE - 64) for number in range(1, 5)]
    content = [*slab, *slab, *slab[:3], bytes(PAGE_SIZE)]
    index = [0, 1, 2, 3] * 3
    codes = pa.array([0] * 4 + [1] * 4 + [2] * 4, pa.int32())
    columns = {
        "mapping": pa.DictionaryArray.from_arrays(
            codes, pa.array(mappings, schema.field("mapping").type.value_type)
        ),
        "index": pa.array(index, pa.uint64()),
        # Rows of one physical frame share it already; null: not known, a frame of the row's own.
        "frame": pa.array([7, 8, 9, 10] * 2 + [None] * 4, pa.uint64()),
        "node": pa.nulls(len(index), pa.int16()),
        "flags": pa.array([0] * len(index), pa.uint32()),
        "content": pa.array(content, pa.binary(PAGE_SIZE)),
    }
    with pa.ipc.new_file(path, schema) as file:
        file.write_table(pa.table(columns, schema=schema))


def main() -> None:
    """Write a dump, scan it, and print which of its pages are equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.arrow"
        write_dump(path)
        scan = gd.scan(path)
    totals = scan.totals
    print(
        f"{totals.pages} pages in {totals.frames} frames, of which {totals.zero_frames} is zero",
        end="",
    )
    print(
        f" and {totals.sharing_frames} equal an earlier one: {totals.saved_bytes} bytes to save\n"
    )
    print("row  owner     kind   name    page  class    same bytes as row")
    for page in scan.pages.to_pylist():
        same = "" if page["row"] == page["representative"] else page["representative"]
        where = f"{page['owner']:10}{page['kind']:7}{page['name']:8}{page['index']:4}"
        print(f"{page['row']:3}  {where}  {page['class']:9}{same}".rstrip())


if __name__ == "__main__":
    main()
