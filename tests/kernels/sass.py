"""Count the instructions that a kernel issues per page, and its loads in flight.

The listing of ``nvdisasm`` is read as a graph of basic blocks. Counted are the instructions that a
converged warp issues: the slow version of shuffles and votes for diverged lanes, behind
``BRA.DIV``, is left out. Branches are chosen for the least cost, then for the most: a count is a
pair of bounds.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Range = tuple[int, int]
"""At least, at most."""

LINE = re.compile(
    r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(?P<guard>@!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<rest>.*?);"
)
TARGET = re.compile(r"`\((\.L\w+)\)")
WIDE_LOAD = re.compile(r"LDG?\.E\.(?:\w+\.)*128\b")
UNREADABLE = {"BRX", "BRXU", "CALL", "JMP", "JMX", "JMXU", "RET", "WARPSYNC.COLLECTIVE"}
"""Control flow that is not followed here; no kernel has it where the warp is converged."""

JUMP = "CALL.REL.NOINC"
"""A far jump, if its target is a label within the kernel; ptxas ends loops with it (sm_80)."""

VOTES = ["VOTE.ANY", "VOTEU.ANY", "LOP3.LUT"]
"""Opcodes before a branch back that first waits for the other lanes (sm_75)."""


class NotCounted(Exception):
    """The control flow of a kernel is of a kind that is not counted."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: ``@P0 BRA `(.L_x_1)``."""

    guard: str
    opcode: str
    operands: str

    @property
    def loads(self) -> bool:
        """Return whether it loads 16 bytes per lane from device memory."""
        return bool(WIDE_LOAD.match(self.opcode))

    @property
    def loaded(self) -> set[int]:
        """Return the registers that a load fills."""
        return {self._named[0] + i for i in range(4)}

    @property
    def sources(self) -> set[int]:
        """Return the registers named, without the target of a load."""
        return set(self._named[1:] if self.loads else self._named)

    @property
    def _named(self) -> list[int]:
        return [int(name) for name in re.findall(r"\bR(\d+)\b", self.operands)]


@dataclass(slots=True)
class _Block:
    instructions: list[Instruction] = field(default_factory=list)
    targets: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop, with the blocks of the loops in it.

    :param latches: blocks that branch back to the header
    """

    header: int
    blocks: frozenset[int]
    latches: frozenset[int]


def disassemble(nvdisasm: Path, cubin: Path) -> dict[str, Listing]:
    """Return the kernels of a cubin by name, without those of unknown control flow."""
    # Dataflow analysis would only name the targets of branches that are not followed here.
    command = [str(nvdisasm), "-ndf", "-c", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, *parts = re.split(r"^\.text\.(\w+):\n", done.stdout, flags=re.MULTILINE)
    listings = {}
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        with suppress(NotCounted):
            listings[name] = Listing(part.split("//-----")[0])
    return listings


class Listing:
    """The code of a kernel.

    :param text: the kernel's part of the listing
    """

    def __init__(self, text: str) -> None:
        self.blocks = _blocks(text)
        reached, todo = {0}, [0]
        while todo:
            new = self.blocks[todo.pop()].targets - reached
            reached |= new
            todo += new
        self.reached = sorted(reached)

    @cached_property
    def loads_in_flight(self) -> int:
        """The most loads of 16 bytes per lane in flight at once, along straight code."""
        most = 0
        awaited: set[int] = set()
        count = 0
        for index in self.reached:
            for instruction in self.blocks[index].instructions:
                if instruction.sources & awaited:
                    awaited, count = set(), 0
                if instruction.loads:
                    awaited |= instruction.loaded
                    count += 1
                most = max(most, count)
            if index + 1 not in self.blocks[index].targets:
                awaited, count = set(), 0
        return most

    def per_turn(self, loads: int) -> Range:
        """Return the instructions that a warp issues in a turn of the outer loop.

        :param loads: loads of 16 bytes per lane in a turn: from them follow the inner loop's turns
        :raises NotCounted: without an outer loop of at most one inner loop, or with calls
        """
        self._check_readable()
        loops = sorted(self._loops, key=lambda loop: len(loop.blocks))
        outer = next((loop for loop in reversed(loops) if self._loads(loop.blocks)), None)
        if outer is None:
            raise NotCounted("no loop with loads")
        nested = [loop for loop in loops if loop.blocks < outer.blocks]
        if len(nested) > 1:
            raise NotCounted(f"{len(nested)} loops in the outer one")
        inner = nested[0] if nested else None
        turns = 1
        if inner:
            inside = self._loads(inner.blocks)
            turns = (loads - self._loads(outer.blocks - inner.blocks)) // max(inside, 1)
        elsewhere = self._loads(outer.blocks) - (self._loads(inner.blocks) if inner else 0)
        made = elsewhere + turns * (self._loads(inner.blocks) if inner else 0)
        if made != loads or turns < 1:
            raise NotCounted(f"the loops make {made} loads, not {loads}")
        return self._way(outer, inner, turns, min), self._way(outer, inner, turns, max)

    def at_most(self, loads: int) -> int:
        """Return the instructions that a warp issues at most, whichever way branches go.

        With loads of 16 bytes: for ``loads`` of them, in the loop around the innermost loop that
        has most. Without: in a turn of the outermost loop, loops within it taken once.

        :raises NotCounted: without a loop, or with calls
        """
        self._check_readable()
        sizes = {loop: self._size(loop.blocks) for loop in self._loops}
        wide = [loop for loop in sizes if self._loads(loop.blocks)]
        if not sizes:
            raise NotCounted("no loop")
        if not wide:
            return max(sizes.values())
        inner = [loop for loop in wide if not any(other.blocks < loop.blocks for other in wide)]
        most = max(self._loads(loop.blocks) for loop in inner)
        counts = []
        for loop in inner:
            if self._loads(loop.blocks) == most:
                around = [sizes[other] for other in wide if loop.blocks < other.blocks]
                once = min(around) - sizes[loop] if around else 0
                counts.append(once - (-sizes[loop] * loads // most))
        return max(counts)

    def _check_readable(self) -> None:
        for index in self.reached:
            if _is_unreadable(last := self.blocks[index].instructions[-1]):
                raise NotCounted(f"{last.opcode} where lanes are together")

    def _size(self, blocks: Set[int]) -> int:
        return sum(len(self.blocks[index].instructions) for index in blocks)

    def _loads(self, blocks: Set[int]) -> int:
        return sum(i.loads for index in blocks for i in self.blocks[index].instructions)

    def _way(
        self, outer: Loop, inner: Loop | None, turns: int, choose: Callable[[list[int]], int]
    ) -> int:
        """Return the cost of the cheapest or dearest way once around the outer loop."""
        cost = {i: len(self.blocks[i].instructions) for i in outer.blocks}
        edges = {i: (self.blocks[i].targets & outer.blocks) - {outer.header} for i in cost}
        if inner:
            body = {i: (edges[i] & inner.blocks) - {inner.header} for i in inner.blocks}
            once = _distances(inner.header, cost, body, choose)
            again = (turns - 1) * choose([once[latch] for latch in inner.latches])
            # The inner loop collapses into its exits, each with the cost up to there.
            ends = {i for i in inner.blocks if edges[i] - inner.blocks}
            for i in inner.blocks:
                edges[i] = edges[i] - inner.blocks if i in ends else set()
                cost[i] = again + once[i]
            for i in outer.blocks - inner.blocks:
                if inner.header in edges[i]:
                    edges[i] = (edges[i] - {inner.header}) | ends
        ways = _distances(outer.header, cost, edges, choose)
        return choose([ways[latch] for latch in outer.latches])

    @cached_property
    def _loops(self) -> list[Loop]:
        """The natural loops, merged by header."""
        dominators = self._dominators()
        found: dict[int, tuple[set[int], set[int]]] = {}
        for index in self.reached:
            for target in self.blocks[index].targets:
                if target in dominators[index]:
                    blocks, latches = found.setdefault(target, ({target}, set()))
                    latches.add(index)
                    blocks |= self._before(index, target)
                elif target <= index:
                    raise NotCounted("a branch back that makes no loop")
        return [Loop(h, frozenset(blocks), frozenset(ends)) for h, (blocks, ends) in found.items()]

    def _before(self, end: int, header: int) -> set[int]:
        """Return the blocks from which ``end`` is reached without passing ``header``."""
        sources = defaultdict(set)
        for index in self.reached:
            for target in self.blocks[index].targets:
                sources[target].add(index)
        seen, todo = {header, end}, [end] if end != header else []
        while todo:
            new = sources[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    def _dominators(self) -> dict[int, set[int]]:
        every = set(self.reached)
        dominators = {index: {0} if index == 0 else every for index in self.reached}
        changed = True
        while changed:
            changed = False
            for index in self.reached[1:]:
                sources = [dominators[i] for i in self.reached if index in self.blocks[i].targets]
                new = set.intersection(*sources) | {index}
                changed |= new != dominators[index]
                dominators[index] = new
        return dominators


def _distances(
    start: int, cost: dict[int, int], edges: dict[int, set[int]], choose: Callable[[list[int]], int]
) -> dict[int, int]:
    """Return the cost of the chosen path from ``start`` to each block, both included."""
    order: list[int] = []
    done: dict[int, bool] = {}

    def visit(index: int) -> None:
        done[index] = False
        for target in sorted(edges[index]):
            if target not in done:
                visit(target)
            elif not done[target]:
                raise NotCounted("a loop that is not counted")
        done[index] = True
        order.append(index)

    visit(start)
    distances = {start: cost[start]}
    for index in order[-2::-1]:
        before = [distances[i] for i in distances if index in edges[i]]
        distances[index] = cost[index] + choose(before)
    return distances


def _blocks(text: str) -> list[_Block]:
    """Cut a listing into basic blocks; a target beyond the last block ends the kernel."""
    lines: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith(".L"):
            labels[line.rstrip(":")] = len(lines)
        elif match := LINE.match(line):
            lines.append(Instruction(match["guard"] or "", match["opcode"], match["rest"].strip()))
        elif "/*" in line:
            raise NotCounted(f"a line that is not understood: {line.strip()}")
    starts = {0, *labels.values()}
    starts |= {at + 1 for at, line in enumerate(lines) if _is_branch(line)}
    cuts = sorted(starts & set(range(len(lines))))
    number = {at: index for index, at in enumerate(cuts)}
    blocks = []
    for begin, end in zip(cuts, [*cuts[1:], len(lines)], strict=True):
        targets = _targets(lines, end - 1, labels)
        blocks.append(_Block(lines[begin:end], {number[at] for at in targets if at in number}))
    return blocks


def _is_branch(line: Instruction) -> bool:
    kind = line.opcode.split(".")[0]
    return kind in {"BRA", "BSYNC", "EXIT"} or line.opcode == JUMP or _is_unreadable(line)


def _is_unreadable(line: Instruction) -> bool:
    if line.opcode == JUMP and TARGET.search(line.operands):
        return False
    return line.opcode.split(".")[0] in UNREADABLE or line.opcode in UNREADABLE


def _targets(lines: list[Instruction], at: int, labels: dict[str, int]) -> set[int]:
    """Return where a converged warp continues after an instruction."""
    line = lines[at]
    label = TARGET.search(line.operands)
    kind = line.opcode.split(".")[0]
    if kind == "EXIT":
        return {at + 1} if line.guard else set()
    if line.opcode == "BRA.DIV":
        return {at + 1}
    if line.opcode == "BRA.CONV" and label:
        return {labels[label[1]]}
    if line.opcode == "BRA.U" and label and [i.opcode for i in lines[at - 3 : at]] == VOTES:
        return {labels[label[1]]}
    if kind == "BRA" and label:
        conditional = line.guard or line.operands.startswith(("P", "!P", "UP", "!UP"))
        return {labels[label[1]]} | ({at + 1} if conditional else set())
    if line.opcode == JUMP and label:
        return {labels[label[1]]} | ({at + 1} if line.guard else set())
    if kind == "BSYNC":
        # Lanes reconverge at the target of this barrier's BSSY.
        for before in reversed(lines[:at]):
            meet = TARGET.search(before.operands)
            barrier = before.operands.split(",")[0]
            if before.opcode.startswith("BSSY") and barrier == line.operands and meet:
                return {labels[meet[1]]}
        raise NotCounted("BSYNC without BSSY")
    return {at + 1}
