"""What a figure depends on, without names; memory that may be used."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from gpudedup.measuring.machine import free_memory, machine


def test_it_has_no_host_name() -> None:
    found = machine()
    assert set(found) == {"cpu", "cores", "memory_gib", "kernel"}
    assert socket.gethostname() not in json.dumps(found)


def _write(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        folder = root / ("proc" if name == "meminfo" else "sys/fs/cgroup")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace("_", ".")).write_text(text)
    return root


def test_free_memory(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    _write(tmp_path, meminfo="MemTotal: 9 kB\nMemAvailable:     400 kB\n")
    assert free_memory(tmp_path) == 400 << 10
    _write(tmp_path, memory_max="max\n", memory_current="4096\n")
    assert free_memory(tmp_path) == 400 << 10
    _write(tmp_path, memory_max="12288\n")
    assert free_memory(tmp_path) == 8192
    _write(tmp_path, memory_current="20000\n")
    assert free_memory(tmp_path) == 0
