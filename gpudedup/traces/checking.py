"""Check that a trace fits the mappings it runs on, before any event runs.

One pass over all events tracks the number and the lengths of mappings. Of pins and splices it
counts the pages only; that an end has its beginning is seen while the events run.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from gpudedup.arguments import MAX_PAGES
from gpudedup.compiled.jit import compiled
from gpudedup.errors import TraceError
from gpudedup.mm.mapping import Mapping
from gpudedup.schema import OPERATIONS, Operation
from gpudedup.traces.events import Events, Trace
from gpudedup.traces.operations import RULES, Need

MAX_HELD = 1 << 24
"""Pages that the pins and splices of a trace hold at one time, or that one event acquires, at most.
Their numbers are kept, so without a limit a trace of two events could mean endless memory."""

GONE = -1
"""Length of a mapping that was dropped."""


class Wrong(IntEnum):
    """Why an event does not fit."""

    MAPPING = 1
    DROPPED = 2
    BEYOND = 3
    NO_FILE = 4
    FILE = 5
    NODE = 6
    DEVICE = 7
    PLACE = 8
    SIZE = 9
    HELD = 10


_MAPPING, _ALIVE, _RANGE = int(Need.MAPPING), int(Need.ALIVE), int(Need.RANGE)
_FILE, _NO_FILE, _GROWS, _SETS = int(Need.FILE), int(Need.NO_FILE), int(Need.GROWS), int(Need.SETS)
_MAKES, _ENDS = int(Need.MAKES), int(Need.ENDS)
_HOLDS = np.zeros(len(OPERATIONS), np.int8)
"""Of each operation: 1 if it holds pages, -1 if it lets them go, 2 if it names them all at once."""
_HOLDS[[Operation.PIN, Operation.PIN_WRITE, Operation.SPLICE]] = 1
_HOLDS[[Operation.UNPIN, Operation.CLOSE]] = -1
_HOLDS[Operation.ACQUIRE_EXCLUSIVE] = 2
_DEVICE, _PLACE, _NODE = int(Need.DEVICE), int(Need.PLACE), int(Need.NODE)


@compiled
def follow(  # type: ignore[no-untyped-def]
    rules,
    holds,
    operation,
    mapping,
    index,
    count,
    node,
    device,
    nodes,
    devices,
    size,
    is_file,
    known,
    held,
):
    """Check events and track the mappings; stop at the first event that does not fit.

    :param rules: (operations,) int64, bits of :class:`gpudedup.traces.operations.Need`
    :param holds: (operations,) int8, :data:`_HOLDS`
    :param nodes, devices: nodes and devices of the manager
    :param size: int64, updated: pages of each mapping, or GONE; with room for those events make
    :param is_file: bool, of the length of ``size``, updated
    :param known: (1,) int64, updated: mappings so far
    :param held: (1,) int64, updated: pages held by pins and splices
    :return: place of the event, and why: a :class:`Wrong`; or (-1, 0)
    """
    most = np.uint64(MAX_PAGES)
    for i in range(len(operation)):
        rule = rules[operation[i]]
        if node[i] < -1 or node[i] >= nodes:
            return i, Wrong.NODE
        if device[i] < -1 or device[i] >= devices:
            return i, Wrong.DEVICE
        if rule & _DEVICE and device[i] < 0:
            return i, Wrong.DEVICE
        if rule & _NODE and node[i] < 0:
            return i, Wrong.NODE
        if rule & _PLACE and (node[i] < 0) == (device[i] < 0):
            return i, Wrong.PLACE
        if rule & _MAPPING == 0:
            continue
        m = mapping[i]
        if m < 0 or m >= known[0]:
            return i, Wrong.MAPPING
        if rule & _ALIVE and size[m] < 0:
            return i, Wrong.DROPPED
        if rule & _FILE and not is_file[m]:
            return i, Wrong.NO_FILE
        if rule & _NO_FILE and is_file[m]:
            return i, Wrong.FILE
        end = index[i] if rule & _SETS else index[i] + np.uint64(count[i])
        # An event of no pages names none, wherever its index lies.
        grows = rule & _GROWS != 0 and count[i] != 0
        if (grows or rule & _SETS) and (index[i] > most or end > most):
            return i, Wrong.SIZE
        if rule & _RANGE and count[i] != 0 and (index[i] > most or end > np.uint64(size[m])):
            return i, Wrong.BEYOND
        hold = holds[operation[i]]
        if hold != 0:
            if hold == 1:
                held[0] += np.int64(count[i])
            if hold == -1:
                held[0] -= np.int64(count[i])
            if held[0] > MAX_HELD or np.int64(count[i]) > MAX_HELD:
                return i, Wrong.HELD
        if grows:
            size[m] = max(size[m], np.int64(end))
        if rule & _SETS:
            size[m] = np.int64(index[i])
        if rule & _MAKES:
            size[known[0]] = size[m]
            is_file[known[0]] = is_file[m]
            known[0] += 1
        if rule & _ENDS:
            size[m] = GONE
    return -1, 0


class Follower:
    """Tracks the mappings of a manager by their numbers in a trace."""

    def __init__(self, mappings: Sequence[Mapping], nodes: int, devices: int) -> None:
        self._nodes, self._devices = nodes, devices
        self._size = np.array([m.pages for m in mappings], np.int64)
        self._is_file = np.array([m.is_file for m in mappings], np.bool_)
        self._known = np.array([len(mappings)], np.int64)
        self._held = np.zeros(1, np.int64)

    def follow(self, trace: Trace, events: Events) -> None:
        """Check the next events.

        :raises TraceError: naming the first row that does not fit
        """
        made = int(np.count_nonzero(RULES[events.operation] & Need.MAKES))
        lacking = int(self._known[0]) + made - len(self._size)
        if lacking > 0:
            more = lacking + len(self._size) // 2
            self._size = np.append(self._size, np.zeros(more, np.int64))
            self._is_file = np.append(self._is_file, np.zeros(more, np.bool_))
        at, why = follow(
            RULES, _HOLDS, events.operation, events.mapping, events.index, events.count,
            events.node, events.device, self._nodes, self._devices, self._size, self._is_file,
            self._known, self._held,
        )  # fmt: skip
        if at >= 0:
            reason = self._reason(events.slice(at, at + 1), Wrong(why))
            raise TraceError(trace.path, reason, events.row + at)

    def _reason(self, event: Events, why: Wrong) -> str:
        word = OPERATIONS[event.operation[0]]
        mapping, node, device = int(event.mapping[0]), int(event.node[0]), int(event.device[0])
        first, count = int(event.index[0]), int(event.count[0])
        if why == Wrong.MAPPING:
            return f"{word}: no mapping {mapping}, there are {self._known[0]}"
        if why == Wrong.DROPPED:
            return f"{word}: mapping {mapping} was dropped"
        if why == Wrong.BEYOND:
            size = int(self._size[mapping])
            return f"{word}: mapping {mapping}: no page {max(first, size)}, it has {size}"
        if why == Wrong.NO_FILE:
            return f"{word}: mapping {mapping} is no file"
        if why == Wrong.FILE:
            return f"{word}: mapping {mapping} is a file"
        if why == Wrong.NODE:
            return f"{word}: no node {_named(node)}, there are {self._nodes}"
        if why == Wrong.DEVICE:
            return f"{word}: no device {_named(device)}, there are {self._devices}"
        if why == Wrong.HELD:
            held = max(count, int(self._held[0]))
            return f"{word}: {held} pages at one time: at most {MAX_HELD} can be held"
        if why == Wrong.PLACE:
            return f"{word}: one of node and device must be given"
        size = first if RULES[event.operation[0]] & Need.SETS else first + count
        return f"{word}: {size} pages: a mapping has at most {MAX_PAGES}"


def _named(number: int) -> str:
    return "given" if number == -1 else str(number)


def check_trace(trace: Trace, mappings: Sequence[Mapping], nodes: int, devices: int) -> int:
    """Check that all events of a trace fit; return how many there are.

    :raises TraceError: naming the first row that does not fit
    """
    follower, total = Follower(mappings, nodes, devices), 0
    for events in trace.pieces():
        follower.follow(trace, events)
        total += len(events)
    return total


def places_named(trace: Trace) -> tuple[int, int]:
    """Return the nodes and devices that a trace needs: one more than the highest it names."""
    nodes = devices = 0
    for events in trace.pieces():
        if len(events):
            nodes = max(nodes, int(events.node.max()) + 1)
            devices = max(devices, int(events.device.max()) + 1)
    return nodes, devices
