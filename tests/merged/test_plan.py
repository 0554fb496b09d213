"""Which rows share a frame: against a model in plain Python, and KSM's closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.merged.merging import EVERYTHING, NO_LIMIT, merge_images
from gpudedup.mm.policy import MergePolicy
from gpudedup.schema import KINDS

from .common import MAPPINGS, as_others_see, expected_slots, slots_of, write_dump

POLICIES = st.builds(
    MergePolicy,
    kinds=st.sampled_from([KINDS, ("anon",), ("anon", "guest"), ("file",), ()]),
    within_domain=st.booleans(),
    max_page_sharing=st.sampled_from([2, 3, 5, NO_LIMIT]),
    merge_across_nodes=st.booleans(),
    use_zero_pages=st.booleans(),
)

ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, len(MAPPINGS) - 1),
        st.one_of(st.none(), st.integers(0, 6)),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@given(rows=ROWS, policy=POLICIES)
@settings(max_examples=120, deadline=None)
def test_frames_are_shared_as_the_model_says(
    scratch: Path, rows: list[tuple[int, int, int | None, int]], policy: MergePolicy
) -> None:
    letters, mapping, frame, node = (list(column) for column in zip(*rows, strict=True))
    old, new = scratch / "old", scratch / "new"
    old.unlink(missing_ok=True)
    write_dump(old, letters, mapping=mapping, frame=frame, node=node)
    done = merge_images(old, new, policy=policy, backend="cpu", force=True)
    assert slots_of(new) == expected_slots(letters, mapping, frame, node, policy)
    assert as_others_see(new) == as_others_see(old)
    assert done.frames == max(slots_of(new)) + 1
    # Merging the result again changes nothing; without limits it gives what the dump would.
    again = scratch / "again"
    merge_images(new, again, policy=policy, backend="cpu", force=True)
    assert as_others_see(again) == as_others_see(old)
    assert again.stat().st_size == new.stat().st_size
    merge_images(new, again, backend="cpu", force=True)
    assert len(set(slots_of(again))) == len(
        set(expected_slots(letters, mapping, frame, node, EVERYTHING))
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_cap_is_that_of_ksm(tmp_path: Path, n: int) -> None:
    """The number of frames is shared + unshared of KSM's closed form."""
    cap = 4
    write_dump(tmp_path / "d", [9] * n, mapping=[0] * n)
    policy = MergePolicy(max_page_sharing=cap)
    done = merge_images(tmp_path / "d", tmp_path / "m", policy=policy, backend="cpu")
    assert done.frames == n // cap + (n % cap >= 2) + (n % cap == 1)


def test_a_frame_of_two_domains_shares_with_neither(tmp_path: Path) -> None:
    """Else a third page of one domain would share with a page of the other."""
    write_dump(tmp_path / "d", [7, 7, 7, 7], mapping=[0, 2, 0, 2], frame=[1, 1, None, None])
    policy = MergePolicy(kinds=KINDS, within_domain=True)
    merge_images(tmp_path / "d", tmp_path / "m", policy=policy, backend="cpu")
    assert slots_of(tmp_path / "m") == [0, 0, 1, 2]
