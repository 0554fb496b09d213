"""The compiled passes of device faults: find pages without a frame there, make entries."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.kernels import ATOMIC, PRESENT, WRITE
from gpudedup.mm.state.arrays import Count, Frame, Geometry, Page
from gpudedup.mm.state.steps import address_of, collapse, node_of, replace_by_fresh

AROUND = 16
"""Pages of an aligned run, within a leaf, that a fault on one of them maps if it can."""


@compiled
def lacking(s, pages, node, store, lacks):  # type: ignore[no-untyped-def]
    """Return how many pages lack a frame in pool ``node`` that serves a load, or a store.

    :param store: the access is a store, which needs a writable or exclusive frame, no replica
    :param lacks: (n,) bool, written: True for these pages
    """
    n = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        if store:
            there = f != 0 and node_of(s, f) == node
            there = there and (
                s.flags[p] & Page.WRITABLE != 0 or s.protection[f] & Frame.EXCLUSIVE != 0
            )
        else:
            there = f == 0 or node_of(s, f) == node
            g = np.int64(s.ring[f]) if s.protection[f] & Frame.REPLICATED else f
            while not there and g != f:
                there = node_of(s, g) == node
                g = np.int64(s.ring[g])
        lacks[i] = not there
        n += not there
    return n


@njit(nogil=True)
def _entry(s, p, node, zero_page, store):  # type: ignore[no-untyped-def]
    """Return the entry of a page for the device with pool ``node``; 0: it cannot reach it so."""
    f = np.int64(s.frame[p])
    if f == 0:
        return np.uint64(0) if store else np.uint64(zero_page) | np.uint64(PRESENT)
    g = f
    if s.protection[f] & Frame.REPLICATED:
        while node_of(s, g) != node:
            g = np.int64(s.ring[g])
            if g == f:
                break
    if node_of(s, g) != node:
        return np.uint64(0)
    entry = address_of(s, g) | np.uint64(PRESENT)
    if s.protection[f] & Frame.EXCLUSIVE:
        return entry | np.uint64(WRITE | ATOMIC)
    if store:
        return entry | np.uint64(WRITE) if s.flags[p] & Page.WRITABLE else np.uint64(0)
    return entry


@njit(nogil=True)
def _note_mirrored(s, p, device):  # type: ignore[no-untyped-def]
    """Note that a device may have an entry for a page."""
    s.mirrors[p] |= np.uint8(1 << device)
    if s.flags[p] & Page.MIRRORED == 0:
        s.flags[p] |= Page.MIRRORED
        s.counts[Count.MIRRORED_PAGES] += 1


@compiled
def mirror(s, pages, device, zero_page, store, entries):  # type: ignore[no-untyped-def]
    """Make a device's entries for pages, and mark the pages as mirrored there.

    Exclusive frames among them are this device's: every other grant has been revoked.

    :param device: number of the device, whose pool follows those of the nodes
    :param zero_page: address of the device's page of zeros
    :param store: entries must allow stores
    :param entries: (n,) uint64, written; 0: the device cannot reach the page so
    """
    node = s.geometry[Geometry.NODES] + device
    for i in range(len(pages)):
        p = np.int64(pages[i])
        entries[i] = _entry(s, p, node, zero_page, store)
        if entries[i] != 0:
            _note_mirrored(s, p, device)


@compiled
def mirror_around(s, pages, index, device, store, is_file, found, entries):  # type: ignore[no-untyped-def]
    """Make entries, as :func:`mirror` does, for pages beside those, where nothing else is needed.

    They have a frame on the device, which nobody holds exclusively, and no entry there. For stores
    they are writable, and a store would change nothing but their generation.

    :param pages, index: (n,) pages for which :func:`mirror` made entries, and where they are
    :param is_file: stores make pages dirty
    :param found: (m,) int64, written: indices of as many pages as fit
    :param entries: (m,) uint64, written
    :return: how many pages
    """
    node, n = s.geometry[Geometry.NODES] + device, 0
    for i in range(len(pages)):
        first = np.int64(pages[i]) & ~np.int64(AROUND - 1)
        if i and np.int64(pages[i - 1]) & ~np.int64(AROUND - 1) == first:
            continue
        for p in range(first, first + AROUND):
            f = np.int64(s.frame[p])
            if f == 0 or s.protection[f] & Frame.EXCLUSIVE or s.mirrors[p] >> device & 1:
                continue
            if store and (s.flags[p] & Page.UNSHARED or (is_file and not s.flags[p] & Page.DIRTY)):
                continue
            entry = _entry(s, p, node, 0, store)
            if entry == 0:
                continue
            if n == len(found):
                return n
            if store:
                # Stores that find the entry are not noted: this one stands for them.
                s.generation[p] += np.uint32(1)
            _note_mirrored(s, p, device)
            found[n] = index[i] + (p - np.int64(pages[i]))
            entries[n] = entry
            n += 1
    return n


@compiled
def retract(s, source, target, lost, node, listed_source, listed_target):  # type: ignore[no-untyped-def]
    """Free frames whose copy failed: replicas are collapsed, pages move to another pool.

    :param source, target: (n,) uint32, frames to copy, and to where; targets are distinct
    :param lost: (n,) bool, whether the source can never be read again
    :param node: (n,) int64, pools of the new targets, with n frames that were never used
    :param listed_source, listed_target: (n or more,) uint32, written: frames to copy instead
    """
    copies = 0
    for i in range(len(target)):
        g = np.int64(target[i])
        if s.protection[g] & Frame.REPLICA:
            collapse(s, np.int64(s.first[g]))
        elif s.aliases[g] != 0:
            g = replace_by_fresh(s, g, node[i])
            if not lost[i]:
                listed_source[copies], listed_target[copies] = source[i], g
                copies += 1
    s.counts[Count.COPIES] = copies


@compiled
def on_devices(s, pages, found):  # type: ignore[no-untyped-def]
    """Write the pages whose frames lie on devices to ``found``, (n,) uint32; return how many."""
    n = 0
    for p in pages:
        if node_of(s, s.frame[p]) >= s.geometry[Geometry.NODES]:
            found[n] = p
            n += 1
    return n
