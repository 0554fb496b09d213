"""The shim itself: it refuses what a GPU leaves undefined, and never hangs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from .common import needs_compiler
from .shim.compile import SCHEDULES, CompileError, Library, Schedule, ShimError, build, signatures

pytestmark = needs_compiler

TEXT = Path(__file__).with_name("probes.cuh").read_text()
EVERY = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def probes(**defines: int) -> Library:
    return build("probes.cuh", defines, text=TEXT)


def launch(
    kernel: str,
    *more: int,
    library: Library | None = None,
    blocks: int = 1,
    threads: int = 64,
    schedule: Schedule | None = None,
) -> npt.NDArray[np.uint64]:
    """Launch a probe; return what it wrote."""
    # A multiple of 16: else a probe's misaligned load might be aligned by chance.
    whole = np.zeros(66, np.uint64)
    start = whole.ctypes.data % 16 // 8
    out = whole[start : start + 64]
    arguments: tuple[np.generic, ...] = (np.uint64(out.ctypes.data), *map(np.uint32, more))
    chosen = library or probes()
    chosen.launch(kernel, blocks, arguments, threads=threads, schedule=schedule)
    return out


REFUSED = {
    "two_barriers": r"comes to __syncthreads .*, but others wait at __syncthreads",
    "leaves_before_the_barrier": r"waits at __syncthreads .*, but thread 5 has returned",
    "leaves_before_the_shuffle": r"waits at __shfl_sync of lanes 0xffffffff .*3 has returned",
    "outside_its_mask": r"is not among lanes 0x000000ff of its own __shfl_sync",
    "reads_beyond_its_mask": r"reads lane 9, which is not among lanes 0x000000ff",
    "two_operations": r"waits at __(any|ballot)_sync .*, but thread \d+ waits at __(any|ballot)",
    "two_masks": r"waits at __ballot_sync of lanes 0xffffffff .*, but thread \d+ has returned",
    "warp_against_block": r"thread 0 waits at __syncwarp .*, but thread 1 waits at __syncthreads",
    "spins": r"all others spin: nobody got on",
    "not_aligned": r"is null or not aligned to 16",
}


@pytest.mark.parametrize("kernel", REFUSED)
def test_what_is_undefined_is_refused(kernel: str) -> None:
    schedules = SCHEDULES if kernel != "spins" else SCHEDULES[:1]
    for schedule in schedules:
        with pytest.raises(ShimError, match=REFUSED[kernel]) as caught:
            launch(kernel, schedule=schedule)
        message = str(caught.value)
        assert "\n" not in message
        assert kernel == "spins" or "probes.cuh:" in message
    # What a failed launch leaves behind does not disturb the next one.
    assert launch("barriers")[0]


def test_lanes_that_do_not_exist_are_waited_for_in_vain() -> None:
    with pytest.raises(ShimError, match=r"waits for lanes 0xffffff00, which do not exist"):
        launch("octets", threads=40)


@EVERY
def test_barriers_combine_what_threads_bring(schedule: Schedule) -> None:
    assert (launch("barriers", schedule=schedule) == 1 + 100 + 10000 * 40).all()


@pytest.mark.parametrize("defines", [{}, {"SHIM_UCONTEXT": 1}], ids=["by hand", "ucontext"])
@EVERY
def test_parts_of_a_warp_meet_apart(schedule: Schedule, defines: dict[str, int]) -> None:
    found = launch("octets", library=probes(**defines), schedule=schedule)
    for thread, value in enumerate(found.tolist()):
        lane, octet = thread % 32, thread % 32 // 8
        expected = (octet + 1) * ((lane ^ 1) << 32)
        expected += 8 * octet + 3
        expected += 100 * (lane - (lane % 8 > 0))
        expected += 10000 * (lane + 2 * (lane % 8 < 6))
        neighbours = range(8 * octet, 8 * octet + 8)
        expected += 1000000 * sum(other % 3 == lane % 3 for other in neighbours)
        expected += 10000000 * ((octet == 1) + 2 * (octet >= 2))
        assert value == expected, f"thread {thread}"


@EVERY
@pytest.mark.parametrize("waits", [0, 63])
def test_a_thread_that_waits_for_another_is_served(waits: int, schedule: Schedule) -> None:
    assert launch("hands_over", waits, schedule=schedule)[0] == 2


@pytest.mark.parametrize("schedule", [*SCHEDULES, Schedule("random", 5, resident=8)], ids=str)
def test_shared_memory_is_poisoned_and_a_blocks_own(schedule: Schedule) -> None:
    strangers, threads, *_ = launch("shares", blocks=12, schedule=schedule)
    assert (strangers, threads) == (0, 12 * 64)


def test_a_seed_is_an_order() -> None:
    def trace(schedule: Schedule) -> tuple[int, ...]:
        return tuple(launch("trace", blocks=3, schedule=schedule).tolist())

    seeds = [Schedule("random", seed, resident) for seed in range(6) for resident in (1, 3)]
    traces = [trace(schedule) for schedule in seeds]
    assert traces == [trace(schedule) for schedule in seeds]
    assert len(set(traces)) == len(seeds)
    assert len({trace(schedule) for schedule in SCHEDULES}) >= 5


def test_random_orders_let_blocks_take_turns() -> None:
    log = launch("trace", blocks=3, schedule=Schedule("random", 1, resident=3))[1:]
    changes = int((np.diff((log // 64).astype(np.int64)) != 0).sum())
    assert changes > 20


def test_one_library_serves_many_threads() -> None:
    library = probes()
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(launch, "barriers", library=library) for _ in range(40)]
    assert all((done.result() == 1 + 100 + 10000 * 40).all() for done in work)


def test_arguments_are_held_to_the_signature() -> None:
    with pytest.raises(TypeError, match=r"takes \(uint64, uint32\), not \(uint64, int64\)"):
        probes().launch("hands_over", 1, (np.uint64(0), np.int64(0)))
    with pytest.raises(TypeError, match="takes"):
        probes().launch("trace", 1, ())


def test_signatures_are_read_from_the_source() -> None:
    found = signatures(
        'extern "C" __global__ void __launch_bounds__(THREADS, 2)\n'
        "    some(const u8* __restrict__ pages,  // not, u32 this\n"
        "         u32 count, u64 low_mask, volatile u64 *at)\n{}"
    )
    (some,) = found.values()
    assert [dtype.name for dtype in some.dtypes] == ["uint64", "uint32", "uint64", "uint64"]
    assert (some.pointers, some.bounds) == ((True, False, False, True), "THREADS, 2")


def test_what_does_not_compile_says_where() -> None:
    with pytest.raises(CompileError, match=r"wrong\.cu:1:"):
        build("wrong.cu", text="int unbalanced(")
