"""Random calls of a manager, each with what it does to a dict of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpudedup.errors import RevokedError
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy

from ..mm.common import PAGE, Meanwhile, rows
from .faults import Owner
from .life import MOST_PAGES, Life, Step

MOST_MAPPINGS = 6
MOST_HOLDERS = 3
WORD = 24
"""Byte of the word that atomics add to."""


def _stored(
    life: Life, mapping: Mapping, index: Sequence[int], data: Sequence[bytes], offset: int = 0
) -> Callable[[Any], None]:
    """Return what notes in the model that rows were stored."""

    def know(_: Any) -> None:
        for i, row in zip(index, data, strict=True):
            life.model.write(mapping, i, row, offset)

    return know


def _pages(data: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(data), np.uint8).reshape(len(data), -1 if data else PAGE)


def create(life: Life, _: object) -> Step | None:
    if len(life.model.held) >= MOST_MAPPINGS:
        return None
    kind, pages = life.rng.choice(["anon", "file", "shmem"]), life.rng.randrange(MOST_PAGES)
    node, domain = life.rng.randrange(2), life.rng.choice("ab")

    def know(made: Mapping | None) -> None:
        if made is not None:
            life.model.held[made] = {}
            life.added(made)

    return Step(
        "create",
        lambda: life.mm.create("m", kind=kind, pages=pages, node=node, domain=domain),
        know,
        makes=True,
    )


def store(life: Life, mapping: Mapping) -> Step:
    index = life.some(mapping)
    data = [life.page() for _ in index]
    return Step(
        "store",
        lambda: life.mm.write(mapping, index, _pages(data)),
        _stored(life, mapping, index, data),
    )


def store_part(life: Life, mapping: Mapping) -> Step:
    index, offset = life.some(mapping), life.rng.randrange(PAGE - 8)
    piece = life.rng.randbytes(life.rng.choice([1, 3, 8]))
    return Step(
        "store_part",
        lambda: life.mm.write(mapping, index, piece, offset=offset),
        _stored(life, mapping, index, [piece] * len(index), offset),
    )


def file_write(life: Life, mapping: Mapping) -> Step | None:
    if not mapping.is_file:
        return None
    index = [*life.some(mapping), life.rng.randrange(MOST_PAGES)]
    data = [life.page() for _ in index]
    return Step(
        "file_write",
        lambda: life.mm.file_write(mapping, index, _pages(data)),
        _stored(life, mapping, index, data),
        sizes={mapping: max(mapping.pages, *(i + 1 for i in index))},
    )


def copy(life: Life, mapping: Mapping) -> Step | None:
    """Fork anonymous memory, reflink a file."""
    if len(life.model.held) >= MOST_MAPPINGS:
        return None

    def call() -> Mapping:
        if mapping.is_file:
            return life.mm.reflink(mapping, name="copy")
        return life.mm.fork(mapping)

    def know(made: Mapping | None) -> None:
        if made is not None:
            life.model.fork(mapping, made)
            life.added(made)
            life.disks[made].update(life.disks[mapping])

    return Step("copy", call, know, makes=True, writes_back=True)


def truncate(life: Life, mapping: Mapping) -> Step:
    pages = life.rng.randrange(MOST_PAGES)
    return Step(
        "truncate",
        lambda: life.mm.truncate(mapping, pages),
        lambda _: life.model.truncate(mapping, pages),
        sizes={mapping: pages},
        may_zero=mapping,
    )


def punch(life: Life, mapping: Mapping) -> Step:
    index = life.some(mapping)

    def know(_: Any) -> None:
        for i in index:
            life.model.held[mapping].pop(i, None)

    return Step("punch", lambda: life.mm.punch(mapping, index), know)


def drop(life: Life, mapping: Mapping) -> Step | None:
    if len(life.model.held) < 3:
        return None

    def call() -> None:
        if not mapping.dropped:
            life.mm.drop(mapping)

    def know(_: Any) -> None:
        life.model.held.pop(mapping, None)

    return Step(
        "drop",
        call,
        know,
        sizes={mapping: 0},
        may_zero=mapping,
        drops=mapping,
    )


def writeback(life: Life, mapping: Mapping) -> Step | None:
    if not mapping.is_file:
        return None
    index = life.rng.choice([None, life.some(mapping)])

    def know(written: int | None) -> None:
        if written is not None:
            for i in range(mapping.pages) if index is None else index:
                row = life.model.read(mapping, i)
                assert row in (bytes(PAGE), life.disks[mapping].get(i)), f"page {i} on the disk"

    return Step("writeback", lambda: life.mm.writeback(mapping, index), know, writes_back=True)


def move(life: Life, mapping: Mapping) -> Step:
    """Migrate or replicate pages to a node or a device."""
    index, change = life.some(mapping), life.rng.choice(["migrate", "replicate"])
    place = life.rng.choice(
        [{"node": at} for at in range(2)] + [{"device": at} for at in life.alive()]
    )

    def call() -> None:
        getattr(life.mm, change)(mapping, index, **place)

    return Step(change, call, may_be_refused="device" in place, may_lose=change == "migrate")


def cache(life: Life, mapping: Mapping) -> Step:
    index, node = life.some(mapping), life.rng.randrange(2)
    return Step("cache", lambda: life.mm.cache(mapping, index, node=node))


def settle(life: Life, mapping: Mapping) -> Step:
    """Collapse, flush, evict or unmerge pages."""
    index, change = life.some(mapping), life.rng.choice(["collapse", "flush", "evict", "unmerge"])
    return Step(change, lambda: getattr(life.mm, change)(mapping, index))


def merge(life: Life, mapping: Mapping) -> Step:
    """Merge; a page may be stored while pages are digested."""
    policy = MergePolicy(
        life.rng.choice([("anon",), ("file", "shmem"), ("anon", "file", "shmem")]),
        life.rng.random() < 0.3, life.rng.choice([2, 3, 256]), life.rng.random() < 0.7,
        life.rng.random() < 0.5,
    )  # fmt: skip
    place = life.rng.randrange(mapping.pages) if mapping.pages and life.rng.random() < 0.5 else None
    data, began = life.page(), []

    def act() -> None:
        began.append(True)
        if place is not None:
            life.mm.write(mapping, place, data)

    def know(report: Any) -> None:
        if began and place is not None:
            life.model.write(mapping, place, data)
        assert report is None or not report.errors or life.faulty

    engine = Meanwhile(act, life.rng.choice([128, 128, 2]))
    return Step("merge", lambda: life.mm.merge(policy, engine=engine), know, writes_back=True)


def device_load(life: Life, mapping: Mapping) -> Step | None:
    if not (alive := life.alive()):
        return None
    index, device = life.some(mapping), life.mm.device(life.rng.choice(alive))

    def know(found: Any) -> None:
        if found is not None:
            assert rows(found) == [life.model.read(mapping, i) for i in index], "a load"

    return Step("device_load", lambda: device.read(mapping, index), know)


def device_store(life: Life, mapping: Mapping) -> Step | None:
    if not (alive := life.alive()):
        return None
    index, device = life.some(mapping), life.mm.device(life.rng.choice(alive))
    data = [life.page() for _ in index]
    return Step(
        "device_store",
        lambda: device.write(mapping, index, _pages(data)),
        _stored(life, mapping, index, data),
        may_lose=True,
    )


def device_add(life: Life, mapping: Mapping) -> Step | None:
    if not (alive := life.alive()):
        return None
    index, device = life.some(mapping), life.mm.device(life.rng.choice(alive))
    value = life.rng.choice([0, 1, 77, (1 << 64) - 1])

    def know(found: Any) -> None:
        done = getattr(found, "done", None)
        before = []
        for at, i in enumerate(index):
            if done is None or done[at]:
                held = int.from_bytes(life.model.read(mapping, i)[WORD : WORD + 8], "little")
                before.append(held)
                added = (held + value & (1 << 64) - 1).to_bytes(8, "little")
                life.model.write(mapping, i, added, WORD)
        if isinstance(found, np.ndarray):
            assert sorted(found.tolist()) == sorted(before), "an addition"

    return Step(
        "device_add",
        lambda: device.atomic_add(mapping, index, WORD // 8, np.uint64(value)),
        know,
        once=True,
        may_be_refused=True,
        may_lose=True,
    )


def acquire(life: Life, mapping: Mapping) -> Step | None:
    if len(life.owners) >= MOST_HOLDERS:
        return None
    index = life.some(mapping)
    device = life.rng.choice([None, *life.alive()])
    manner = life.rng.choice(life.manners)

    def call() -> Owner:
        owner = Owner(manner, life.wrote, life.page(), life.end)
        owner.handle = life.mm.acquire_exclusive(
            mapping, index, device=device, on_revoke=owner.on_revoke
        )
        return owner

    def know(owner: Owner | None) -> None:
        if owner is not None:
            life.owners.append(owner)

    return Step("acquire", call, know, once=True, may_be_refused=True, may_lose=True)


def use(life: Life, _: Mapping) -> Step | None:
    """Write a page as its owner, or end exclusive access."""
    if not life.owners:
        return None
    owner = life.rng.choice(life.owners)
    assert owner.handle is not None
    handle, data = owner.handle, life.page()
    if not len(handle.index) or handle.mapping.dropped:
        return None
    if life.rng.random() < 0.2:
        return _release(life, owner)
    place = int(life.rng.choice(handle.index.tolist()))
    if place >= handle.mapping.pages:
        return None

    def call() -> bool:
        try:
            handle.write([place], data)
        except RevokedError:
            assert owner.manner == "hangs" or place in {*owner.told, *owner.released}
            return False
        return True

    def know(written: bool | None) -> None:
        if written is None or written:
            life.model.write(handle.mapping, place, data)

    return Step("use", call, know)


def _release(life: Life, owner: Owner) -> Step:
    handle = owner.handle
    assert handle is not None

    def know(_: Any) -> None:
        owner.released.update(handle.index.tolist())

    return Step("release", handle.release, know)


def pin(life: Life, mapping: Mapping) -> Step | None:
    if len(life.pins) >= MOST_HOLDERS:
        return None
    index = life.some(mapping)

    def know(made: Any) -> None:
        if made is not None:
            life.pins.append(made)
            assert rows(made.read()) == [life.model.read(mapping, i) for i in index], "a pin"

    return Step("pin", lambda: life.mm.pin(mapping, index), know)


def pin_write(life: Life, mapping: Mapping) -> Step:
    index = life.some(mapping)
    data = life.page()

    def call() -> None:
        with life.mm.pin(mapping, index, write=True) as made:
            made.write(data)

    return Step("pin_write", call, _stored(life, mapping, index, [data] * len(index)))


def unpin(life: Life, _: Mapping) -> Step | None:
    if not life.pins:
        return None
    made = life.pins.pop(life.rng.randrange(len(life.pins)))
    return Step("unpin", made.unpin)


def splice(life: Life, mapping: Mapping) -> Step | None:
    if len(life.buffers) >= MOST_HOLDERS:
        return None
    index = life.some(mapping)

    def know(made: Any) -> None:
        if made is not None:
            expected = b"".join(life.model.read(mapping, i) for i in index)
            life.buffers.append((made, expected))

    return Step("splice", lambda: life.mm.splice(mapping, index), know)


def close(life: Life, _: Mapping) -> Step | None:
    if not life.buffers:
        return None
    buffer, expected = life.buffers.pop(life.rng.randrange(len(life.buffers)))
    with life.lost_allowed():
        assert buffer.bytes() == expected, "a spliced buffer"
    return Step("close", buffer.close)


STEPS: list[Callable[[Life, Mapping], Step | None]] = [
    store, store, store, store_part, file_write, copy, truncate, punch, drop, create, create,
    writeback, move, move, cache, settle, merge, merge, device_load, device_load, device_store,
    device_store, device_add, acquire, use, use, pin, pin_write, unpin, splice, close,
]  # fmt: skip


def next_step(life: Life) -> Step:
    """Return a random step."""
    while True:
        if not life.model.held:
            made = create(life, None)
            assert made
            return made
        mapping = life.rng.choice(list(life.model.held))
        step = life.rng.choice(STEPS)(life, mapping)
        if step is not None:
            return step
