"""Kernels with one mistake each: the checks of this folder must notice every one.

A mistake that reads or writes out of bounds is among :mod:`sanitized` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from gpudedup.kernels import source

from .checks import (
    Grouping,
    check_compare,
    check_copy,
    check_digest,
    check_group,
    check_read,
    check_settle,
    settling,
    starting_at_the_end,
    stream,
    words_at_the_end,
)
from .common import Kernels, needs_compiler
from .shim.compile import Schedule
from .table_checks import Part, check_add, check_load, check_set, check_store

pytestmark = needs_compiler

QUAD = partial(check_digest, page_size=4096, layout="quad", count=11)
OCTET = partial(check_digest, page_size=4096, layout="octet", count=11)
BLOCK = partial(check_digest, page_size=256 << 10, layout="block", count=4)
GROUP = partial(check_group, case=Grouping(stream(1, 500, 60), 200, 501, room=30))
CLUSTER = partial(check_group, case=Grouping(starting_at_the_end(200), 200, 400))
OTHER_CLASSES = Grouping(
    stream(11, 500, 100), 90, 501, 20,
    np.random.default_rng(11).choice([0, 0, 0, 1, 2], 500).astype(np.uint8),
)  # fmt: skip
BY_WARP = {"INSERTING": 2}
SETTLE = partial(check_settle, case=settling(1, 500, 9, 200, 501, offset=77))
WORDS_CLUSTER = partial(check_settle, case=words_at_the_end(60))
COMPARE = partial(check_compare, page_size=4096)
GATHER = partial(check_copy, page_size=512, gather=True, scatter=False)
READ = partial(check_read, pairs=3000)
SCATTER = partial(check_copy, page_size=4096, gather=False, scatter=True)
SET = partial(check_set, count=300)
LOAD = partial(check_load, page_size=512, part=Part(0, 512))
LOAD_PART = partial(check_load, page_size=512, part=Part(5, 13))
LOAD_ODD = partial(check_load, page_size=512, part=Part(16, 13), count=1)
STORE = partial(check_store, page_size=512, part=Part(0, 512))
STORE_PART = partial(check_store, page_size=512, part=Part(5, 13, stride=16))
ADD = partial(check_add, page_size=512)

IN_ORDER = Schedule()
SLOW_FIRST_WARP = Schedule("behind", 0)
RACE = Schedule("random", 1, resident=4)


@dataclass(frozen=True)
class Mutant:
    """A mistake, and the check that must notice it.

    :param file: name of the source
    :param old: text in the source, or in a file that it includes
    :param new: text that replaces ``old``
    :param check: called with the kernels; must fail
    :param schedule: order of threads under which the mistake shows
    :param switches: variant of the kernel in which it shows
    """

    file: str
    old: str
    new: str
    check: Callable[[Kernels], None]
    schedule: Schedule = IN_ORDER
    switches: Mapping[str, int] = field(default_factory=dict)

    def mutate(self, file: str, text: str) -> str:
        """Make the mistake."""
        return text.replace(self.old, self.new) if file == self.file else text


DIFFER = "differ[0] | differ[1] | differ[2] | differ[3]"
MUTANTS = {
    "block: no barrier": Mutant(
        "digest.cu", f"!__syncthreads_or({DIFFER})", f"!__any_sync(ALL_LANES, {DIFFER})", BLOCK
    ),
    "block: barrier in a branch": Mutant(
        "digest.cu",
        f"const bool same = !__syncthreads_or({DIFFER});\n            if (warp) continue;",
        f"if (warp) continue;\n            const bool same = !__syncthreads_or({DIFFER});",
        BLOCK,
    ),
    "block: one buffer for all tiles": Mutant(
        "digest.cu", "turn ^= 1", "turn ^= 0", BLOCK, SLOW_FIRST_WARP
    ),
    "block: sums one place off": Mutant(
        "digest.cu", "[at + lane / 8][", "[at + lane / 8 + 1][", BLOCK
    ),
    "block: scramble after the last": Mutant(
        "digest.cu", "if (tile + i + 1 < BLOCKS) acc", "acc", BLOCK
    ),
    "quad: a shift of 8 lanes": Mutant(
        "digest.cu", "lane & 16 ? lower : upper, 16)", "lane & 16 ? lower : upper, 8)", QUAD
    ),
    "quad: key of the last stripe": Mutant(
        "digest.cu", "stripe == 7 ? keys_at(LAST_STRIPE_AT + 8 * word) :", "", QUAD
    ),
    "quad: scramble after the last": Mutant("digest.cu", "if (!ends) acc =", "acc =", QUAD),
    "quad: one page's differences": Mutant(
        "digest.cu", "differ[p] |= differing", "if (p != 2) differ[p] |= differing", QUAD
    ),
    "quad: writes beyond the end": Mutant(
        "digest.cu", "if (lane / 8 == p && page < count)", "if (lane / 8 == p)", QUAD
    ),
    "quad: loads not aligned": Mutant(
        "digest.cu", "min(QUAD * quad + p, count - 1) + 16 * lane",
        "min(QUAD * quad + p, count - 1) + 8 * lane", QUAD,
    ),
    "merge: half a mask": Mutant(
        "digest.cu", "__shfl_xor_sync(ALL_LANES, acc, 4)", "__shfl_xor_sync(0xFFFF, acc, 4)", QUAD
    ),
    "octet: lanes that leave early": Mutant(
        "digest.cu", "u64 acc = start, first = 0;",
        "if (page >= count) continue;\n        u64 acc = start, first = 0;", OCTET,
    ),
    "octet: differences of its neighbours": Mutant(
        "digest.cu", "differ) >> (lane & ~7u) & 0xFF", "differ)", OCTET
    ),
    "insert: no minimum": Mutant(
        "group.cu", "atomicMin(table + slot, mine);", "{}", GROUP, Schedule("backward")
    ),
    "insert: the higher number stays": Mutant(
        "group.cu", "mine < seen", "mine > seen", GROUP, Schedule("backward")
    ),
    "insert: compared with a page that another lane met": Mutant(
        "group.cu", "mine < seen", "mine < __shfl_sync(ALL_LANES, seen, 0)", GROUP
    ),
    "insert: the lower half for the whole digest": Mutant(
        "group.cu", " & __match_any_sync(together, high)", "", CLUSTER, switches=BY_WARP
    ),
    "insert: the upper half for the whole digest": Mutant(
        "group.cu", "__match_any_sync(together, low) & ", "", CLUSTER, switches=BY_WARP
    ),
    "insert: the highest page leads": Mutant(
        "group.cu", "__ffs(equal) - 1", "31 - __clz(equal)", GROUP, switches=BY_WARP
    ),
    "insert: lanes without a page are waited for": Mutant(
        "group.cu", "__match_any_sync(together, low)", "__match_any_sync(ALL_LANES, low)", GROUP,
        switches=BY_WARP,
    ),
    "insert: pages that are zero are taken for others": Mutant(
        "group.cu", "if (!looks) continue;", "if (i >= count) continue;",
        partial(check_group, case=OTHER_CLASSES), switches=BY_WARP,
    ),
    "insert: the slot is not handed on": Mutant(
        "group.cu", "slot = __shfl_sync(equal, slot, lowest);", "", GROUP, switches=BY_WARP
    ),
    "insert: the slot of the first lane": Mutant(
        "group.cu", "__shfl_sync(equal, slot, lowest)",
        "__shfl_sync(together, slot, __ffs(together) - 1)", GROUP, switches=BY_WARP,
    ),
    "insert: a lost race": Mutant(
        "group.cu", "seen = atomicCAS(table + slot, FREE, mine)",
        "atomicCAS(table + slot, FREE, mine)", GROUP, RACE,
    ),
    "insert: a store, not an exchange": Mutant(
        "group.cu", "seen = atomicCAS(table + slot, FREE, mine)",
        "__threadfence(), table[slot] = mine", GROUP, RACE,
    ),
    "insert: tags only": Mutant(
        "group.cu", "if (digests[2 * other] != low || digests[2 * other + 1] != high) continue;",
        "(void)other;", CLUSTER,
    ),
    "resolve: one page too many": Mutant(
        "group.cu", "if (taken < room) place", "if (taken <= room) place", GROUP, RACE
    ),
    "resolve: not counted at once": Mutant(
        "group.cu", "atomicAdd(used, 1)",
        "({ u32 was = *used; __threadfence(); *used = was + 1; was; })",
        GROUP, RACE,
    ),
    "words: no minimum": Mutant(
        "settle.cu", "atomicMin(lowest, number)", "(__threadfence(), *lowest = number)",
        SETTLE, RACE,
    ),
    "words: the first to come": Mutant(
        "settle.cu", "> number) atomicMin", "== ~0u) atomicMin", SETTLE, Schedule("backward")
    ),
    "words: a lost race": Mutant(
        "settle.cu", "seen = atomicCAS(words + slot, FREE_WORD, word)",
        "atomicCAS(words + slot, FREE_WORD, word)", WORDS_CLUSTER, RACE,
    ),
    "words: a store, not an exchange": Mutant(
        "settle.cu", "seen = atomicCAS(words + slot, FREE_WORD, word)",
        "__threadfence(), words[slot] = word", WORDS_CLUSTER, RACE,
    ),
    "words: any word is mine": Mutant(
        "settle.cu", "seen == FREE_WORD || seen == word", "true", WORDS_CLUSTER
    ),
    "words: zero pages nowhere": Mutant(
        "settle.cu", "if (classes[i] == ZERO) lower(lowest + slots, number);", "", SETTLE
    ),
    "words: zero pages among the words": Mutant(
        "settle.cu", "lower(lowest + slots, number)", "lower(lowest, number)", SETTLE
    ),
    "settle: the number in the chunk": Mutant(
        "settle.cu", "number != first + i", "number != i",
        partial(check_settle, case=settling(4, 300, 200, 100, 451)),
    ),
    "words: the number in the chunk": Mutant("settle.cu", "(u32)(first + i)", "i", SETTLE),
    "settle: no offset": Mutant("settle.cu", "number + offset", "number", SETTLE),
    "settle: half an offset": Mutant(
        "settle.cu", "number + offset", "number + (u32)offset",
        partial(check_settle, case=settling(2, 200, 9, 100, 301, offset=(1 << 32) + 5)),
    ),
    "settle: followers stay": Mutant(
        "settle.cu", "if (kind == FOLLOWER) classes[i] = CONTENT;", "", SETTLE
    ),
    "settle: followers are left": Mutant(
        "settle.cu", "left += kind == LEFT", "left += kind >= FOLLOWER", SETTLE
    ),
    "settle: the first of a word shares": Mutant(
        "settle.cu", " && number != first + i)", ")", SETTLE
    ),
    "settle: a lost mark": Mutant(
        "settle.cu", "return !(atomicOr(word, bit) & bit);",
        "const u32 was = *word; __threadfence(); *word = was | bit; return !(was & bit);",
        SETTLE, RACE,
    ),
    "settle: each page marks": Mutant(
        "settle.cu", "return !(atomicOr(word, bit) & bit);", "return atomicOr(word, bit), 1;",
        SETTLE, RACE,
    ),
    "settle: half a warp": Mutant("settle.cu", "step = WARP / 2", "step = WARP / 4", SETTLE),
    "settle: each lane adds": Mutant("settle.cu", "!lane_number() && mine", "mine", SETTLE),
    "settle: words are zeros": Mutant(
        "settle.cu", "kind == ZERO ? slots : found[i]", "slots", SETTLE
    ),
    "compare: the last load": Mutant(
        "compare.cu", "for (u32 i = 0; i < LOADS; i++)", "for (u32 i = 0; i < LOADS - 1; i++)",
        COMPARE,
    ),
    "compare: half of each load": Mutant(
        "compare.cu", "(a.x ^ b.x) | (a.y ^ b.y)", "a.x ^ b.x ^ (a.y & 0) ^ (b.y & 0)", COMPARE
    ),
    "compare: a lane leaves alone": Mutant(
        "compare.cu", "__any_sync(ALL_LANES, bits != 0)", "bits != 0", COMPARE
    ),
    "compare: the anchor of the first follower": Mutant(
        "compare.cu", "__shfl_sync(ALL_LANES, anchor_at, which)",
        "__shfl_sync(ALL_LANES, anchor_at, __ffs(__ballot_sync(ALL_LANES, anchor_at != 0)) - 1)",
        partial(check_compare, page_size=1024, groups=12),
    ),
    "compare: the page with itself": Mutant(
        "compare.cu", "load_shared(anchor + at", "load_shared(page + at", COMPARE
    ),
    "load: half of the bytes": Mutant(
        "compare.cu", "    GPUDEDUP_LOAD(\"ld.global.cs.v2.u64\", at, pair);",
        "    GPUDEDUP_LOAD(\"ld.global.cs.v2.u64\", at, pair), pair.y = 0;", COMPARE,
    ),
    "compare: all lanes": Mutant("compare.cu", " && lane == which)", ")", COMPARE),
    "compare: nowhere passes": Mutant(
        "compare.cu", "bool left = follows && !anchor_at;", "bool left = false;", COMPARE
    ),
    "copy: a page from nowhere": Mutant(
        "copy.cu", "if (!target || !source)", "if (!target)", GATHER
    ),
    "read: a sum that is not atomic": Mutant(
        "read.cu", "atomicAdd(sum, mine)", "{ mine += *sum; __threadfence(); *sum = mine; }",
        READ, RACE,
    ),
    "copy: a load too few": Mutant(
        "copy.cu", "held[LOADS];", "held[LOADS] = {};\n        if (at >= 3 * STEP) continue;",
        SCATTER,
    ),
    "set: a word too few": Mutant(
        "page_table.cu", "i = thread_in_grid(); i < count", "i = thread_in_grid(); i + 1 < count",
        SET,
    ),
    "translate: loads are enough to store": Mutant(
        "page_table.cu", "PRESENT | WRITE)", "PRESENT)", STORE
    ),
    "translate: loads are enough to add": Mutant(
        "page_table.cu", "PRESENT | ATOMIC)", "PRESENT)", ADD
    ),
    "translate: stores are enough to add": Mutant(
        "page_table.cu", "PRESENT | ATOMIC)", "PRESENT | WRITE)", ADD
    ),
    "translate: one bit is enough": Mutant(
        "page_table.cu", "(entry & needed) == needed", "entry & needed", STORE
    ),
    "translate: what is not present": Mutant(
        "page_table.cu", "(entry & needed) == needed", "(entry & needed) == (needed & ~PRESENT)",
        LOAD,
    ),
    "translate: bits in an address": Mutant(
        "page_table.cu", "entry & ~FLAGS", "entry & ~PRESENT", LOAD
    ),
    "translate: a branch too many": Mutant("page_table.cu", ">= branches", "> branches", LOAD),
    "translate: the leaves of the first branch": Mutant(
        "page_table.cu", "(branch)[page", "(directory[0])[page", LOAD
    ),
    "translate: a leaf of another branch": Mutant(
        "page_table.cu", "page / BRANCH_PAGES];", "0];", LOAD
    ),
    "translate: leaves not modulo": Mutant(
        "page_table.cu", " % BRANCH_LEAVES]", " % (2 * BRANCH_LEAVES)]", LOAD
    ),
    "load: the beginning of a page": Mutant(
        "page_table.cu", "page + offset, size", "page, size", LOAD_PART
    ),
    "store: the beginning of a page": Mutant(
        "page_table.cu", "move_bytes(page + offset,", "move_bytes(page,", STORE_PART
    ),
    "store: rows one after another": Mutant(
        "page_table.cu", "stride * i", "(u64)size * i", STORE_PART
    ),
    "load: a row that is missed is not told": Mutant(
        "page_table.cu", "missed[i] = !page", "missed[i] = 0", LOAD
    ),
    "move: half of the loads": Mutant(
        "page_table.cu", "at += LOADS * STEP", "at += 2 * LOADS * STEP",
        partial(check_load, page_size=8192, part=Part(0, 8192)),
    ),
    "move: always the widest words": Mutant(
        "page_table.cu", "all % sizeof(Pair) == 0", "all | 1", STORE_PART
    ),
    "move: addresses alone choose the words": Mutant(
        "page_table.cu", "target | source | size", "target | source", LOAD_ODD
    ),
    "add: not atomic": Mutant(
        "page_table.cu", "atomicAdd(reinterpret_cast<u64*>(page) + word[i], value[i])",
        "({ u64* at = reinterpret_cast<u64*>(page) + word[i]; const u64 was = *at;"
        " __threadfence(); *at = was + value[i]; was; })",
        ADD, RACE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_noticed(name: str) -> None:
    mutant = MUTANTS[name]
    # Not within ``raises``, where a mutant that changes nothing would count as noticed.
    text = source(mutant.file)
    assert mutant.mutate(mutant.file, text) != text, "the source has changed: adapt the mutant"
    right = Kernels(mutant.schedule, blocks=4, switches=mutant.switches)
    wrong = Kernels(mutant.schedule, blocks=4, switches=mutant.switches, mutate=mutant.mutate)
    mutant.check(right)
    with pytest.raises(AssertionError):
        mutant.check(wrong)
