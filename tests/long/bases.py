"""Small files of every format that is read, to be mutated: most of their bytes are metadata."""

from __future__ import annotations

import platform
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import gpudedup as gd
from gpudedup.images.dumps.merged_writer import SEAL_MAGIC
from gpudedup.images.opening import open_image
from gpudedup.processes.capture import capture

from ..images.cores import auxv, core, file_note, load, note, prpsinfo
from ..images.dumps.test_reader_fuzz import SEEDS as DUMPS
from ..images.test_elf_fuzz import SEEDS as CORES
from ..images.test_elf_fuzz import places as core_places
from ..merged.common import write_dump
from ..merged.test_restoring import as_merged_by_pyarrow
from ..traces.common import MAPPINGS, event, trace_of, write_image
from .flatbuffers import Spot, spots

HEAD_BYTES = 24 << 10
"""Bytes of a genuine core that are kept; the rest becomes a hole."""

WAITING = b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"
"""x86-64: ``pause``, again and again."""


@dataclass(frozen=True)
class Base:
    """A file as it was before it is mutated.

    :param kind: reader that it was made for: ``arrow``, ``elf``, ``raw`` or ``trace``
    :param data: its bytes, of ``size`` with a hole at the end
    :param spots: numbers in its headers
    :param sealed: bytes that its hash leaves out: first and end of its frames; None: no seal
    """

    name: str
    kind: str
    data: bytes
    size: int
    spots: list[Spot]
    sealed: tuple[int, int] | None = None


def make(folder: Path) -> None:
    """Write all files into a folder; their names begin with their kind."""
    for name, data in DUMPS.items():
        (folder / f"arrow {name}").write_bytes(data)
    _make_merged(folder)
    _make_traces(folder)
    for name, data in {**CORES, **_cores()}.items():
        (folder / f"elf {name}").write_bytes(data)
    (folder / "raw").write_bytes(bytes(range(256)) * 32)
    if platform.machine() == "x86_64":
        _capture(folder)


def _make_merged(folder: Path) -> None:
    a = write_dump(folder / "a", [1, 2, 0, 1, 3, 0, 4], frame=range(10, 17))
    b = write_dump(folder / "b", [2, 9, 2])
    gd.merge_images([a, b], folder / "arrow merged", backend="cpu")
    gd.merge_images(a, folder / "arrow merged alone", backend="cpu")
    as_merged_by_pyarrow(folder / "arrow merged by others")
    for path in (a, b):
        path.unlink()


def _make_traces(folder: Path) -> None:
    write_image(folder / "image", MAPPINGS)
    events = [
        event("write", 0, 1, 2, seed=3), event("read", 1, 0, 3, node=1), event("fork", 0),
        event("device_write", 4, 2, seed=5, device=0), event("pin", 0, 0, 2),
        event("file_write", 2, 7, 2, seed=8), event("merge"), event("unpin", 0, 0, 2),
        event("migrate", 1, 0, 2, device=1), event("truncate", 3, 2), event("drop", 4),
        event("write", 0, 3, time_ns=77),
    ]  # fmt: skip
    table = trace_of(events)
    texts = table.set_column(0, "operation", table.column(0).cast(pa.string()))
    for name, one, options in (
        ("trace", table, {}),
        ("trace as text", texts, {}),
        ("trace lz4", table, {"compression": "lz4"}),
        ("trace zstd", table, {"compression": "zstd"}),
    ):
        how = pa.ipc.IpcWriteOptions(unify_dictionaries=True, **options)
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_file(sink, one.schema, options=how) as file,
        ):
            file.write_table(one, max_chunksize=7)


def _cores() -> dict[str, bytes]:
    notes = prpsinfo(b"name", 7, 1000) + file_note((0x10000, 0x12000, b"/lib/a"))
    loads = [load(0x800, 0x10000, 0x2000), load(0x2800, 0x7F0000, 0x800, 0x3000)]
    qemu = note(b"QEMU", 0, bytes(440))
    machine = [load(0x800, 0, 0x1800, paddr=0x1000), load(0x2000, 0, 0x1000, paddr=0x8000)]
    return {
        "process": core(loads, notes + auxv(random=0x10010, vdso=0x7F0000)),
        "machine": core(machine, qemu),
    }


def _capture(folder: Path) -> None:
    """Capture a process that has a few pages only."""
    code, at = WAITING, 0x400000
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, at + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = 120 + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, size, size, 4096)
    program = folder / "waiting"
    program.write_bytes(header + segment + code)
    program.chmod(0o700)
    with subprocess.Popen([program], env={}) as running:
        try:
            capture([running.pid], str(folder / "arrow captured"), stop=True)
        finally:
            running.kill()
    program.unlink()
    gd.merge_images(folder / "arrow captured", folder / "arrow captured, merged", backend="cpu")


def load_all(folder: Path) -> list[Base]:
    """Return the files that :func:`make` wrote, in the order of their names."""
    paths = sorted(path for path in folder.iterdir() if path.name != "image")
    return [_base(path) for path in paths]


def _base(path: Path) -> Base:
    data = path.read_bytes()
    kind = path.name.split()[0]
    if kind == "elf":
        return Base(path.name, kind, data[:HEAD_BYTES], len(data), core_places(data))
    if kind == "raw":
        return Base(path.name, kind, data, len(data), [])
    sealed = None
    if SEAL_MAGIC in data:
        with open_image(path) as image:
            first = image.extents[0].offset
            sealed = (first, first + image.stored * image.page_size)
    return Base(path.name, kind, data, len(data), spots(data), sealed)


def image_of_traces(folder: Path) -> Path:
    """Return the image that the traces run on."""
    return folder / "image"
