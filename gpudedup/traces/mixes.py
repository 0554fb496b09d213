"""Mixes of operations for generated traces. Imports are light: ``--help`` lists the mixes."""

from __future__ import annotations

from dataclasses import dataclass

ANONYMOUS = ("anon", "guest")
FILES = ("file", "shmem")


@dataclass(frozen=True, slots=True)
class MixDefinition:
    """What a mix is made of.

    :param about: description for ``--help``, without the kinds
    :param kinds: kinds of mappings whose pages are touched
    :param shares: events of each operation per 1000
    :param burst: events of one operation on one mapping in a row, by default
    """

    about: str
    kinds: tuple[str, ...]
    shares: dict[str, int]
    burst: int = 1


MIXES = {
    "write-heavy": MixDefinition(
        "75 % stores, 25 % loads",
        ANONYMOUS,
        {"write": 750, "read": 250},
    ),
    "read-mostly-numa": MixDefinition(
        "95 % loads from all nodes, 3 % stores, 1 % replicate, 0.5 % migrate, 0.5 % collapse",
        (*ANONYMOUS, *FILES),
        {
            "read": 950,
            "write": 30,
            "replicate": 10,
            "migrate": 5,
            "collapse": 5,
        },
    ),
    "device-atomics": MixDefinition(
        "of devices 25 % atomic additions, 40 % loads, 10 % stores; of the host 15 % loads,"
        " 10 % stores; 64 of a kind in a row",
        ANONYMOUS,
        {
            "atomic_add": 250,
            "device_read": 400,
            "device_write": 100,
            "read": 150,
            "write": 100,
        },
        burst=64,
    ),
    "fork-storm": MixDefinition(
        "0.5 % forks, 0.5 % drops of the oldest fork, between them 60 % stores and 39 % loads of"
        " parents and forks",
        ANONYMOUS,
        {"fork": 5, "drop": 5, "write": 600, "read": 390},
    ),
    "file-writes-truncates": MixDefinition(
        "50 % file writes (a tenth appends), 25 % reads, 8 % stores, 6 % writeback, 5 % punch,"
        " 2 % truncate, 2 % splice, 2 % close",
        FILES,
        {
            "file_write": 500,
            "read": 250,
            "write": 80,
            "writeback": 60,
            "punch": 50,
            "truncate": 20,
            "splice": 20,
            "close": 20,
        },
    ),
}
"""Mixes by name."""
