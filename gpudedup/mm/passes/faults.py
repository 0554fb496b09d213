"""The compiled passes of device faults: find pages without a frame there, make entries."""

from __future__ import annotations

import numpy as np

from gpudedup.compiled.jit import compiled
from gpudedup.kernels import ATOMIC, PRESENT, WRITE
from gpudedup.mm.state.arrays import Count, Frame, Geometry, Page
from gpudedup.mm.state.steps import address_of, collapse, node_of, replace_by_fresh


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
        f = np.int64(s.frame[p])
        g = f
        entry = np.uint64(0)
        if f == 0:
            if not store:
                entry = np.uint64(zero_page) | np.uint64(PRESENT)
        else:
            if s.protection[f] & Frame.REPLICATED:
                while node_of(s, g) != node:
                    g = np.int64(s.ring[g])
                    if g == f:
                        break
            if node_of(s, g) == node:
                entry = address_of(s, g) | np.uint64(PRESENT)
                if s.protection[f] & Frame.EXCLUSIVE:
                    entry |= np.uint64(WRITE | ATOMIC)
                elif store:
                    entry = entry | np.uint64(WRITE) if s.flags[p] & Page.WRITABLE else np.uint64(0)
        entries[i] = entry
        if entry != 0:
            s.mirrors[p] |= np.uint8(1 << device)
            if s.flags[p] & Page.MIRRORED == 0:
                s.flags[p] |= Page.MIRRORED
                s.counts[Count.MIRRORED_PAGES] += 1


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
