"""What is timed on the host is right, and what is wrong is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpudedup.compiled.digests import digest_into
from gpudedup.errors import WrongResultError
from gpudedup.measuring import host
from gpudedup.measuring.host import HostWork, compare
from gpudedup.measuring.populations import POPULATIONS

SIZE = 1 << 20


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_right(population: str, threads: int) -> None:
    work = HostWork(population, SIZE, threads)
    work.check()
    words = sum(np.frombuffer(work.pages.tobytes(), "<u8").tolist()) % 2**64
    assert work.read() == work.read_ahead() == words
    assert work.copy().tobytes() == work.pages.tobytes()[: SIZE // 2]
    found = compare(work, 2)
    assert {len(samples) for samples in found.seconds.values()} == {2}
    assert found.size == SIZE
    assert set(found.ratios) == {
        f"{name} / {other}" for name in (host.DIGEST, host.SCAN) for other in ("read", "read ahead")
    }


def test_digests_are_those_of_the_reference() -> None:
    xxhash = pytest.importorskip("xxhash")
    work = HostWork("mix", SIZE)
    work.digest()
    right = [xxhash.xxh3_128_intdigest(page.tobytes()) for page in work.pages]
    assert [int(low) + (int(high) << 64) for low, high in work.digests] == right


@pytest.mark.parametrize("loop", ["read_words", "read_ahead"])
def test_a_loop_that_leaves_out_bytes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    whole = getattr(host, loop)
    monkeypatch.setattr(host, loop, lambda words: whole(words[:-8]))
    with pytest.raises(WrongResultError, match="sum of random"):
        HostWork("random", SIZE).check()


def test_a_copy_that_leaves_out_a_byte_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = host.copy_pages
    monkeypatch.setattr(host, "copy_pages", lambda to, at, size: whole(to, at, size - 1))
    with pytest.raises(WrongResultError, match="copy of random: wrong in 1 of 128 rows"):
        HostWork("random", SIZE).check()


def test_a_digest_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "digest_into", lambda at, size, out: digest_into(at, size, out[:-1]))
    with pytest.raises(WrongResultError, match="digests of random: wrong in 1 of 256 rows"):
        HostWork("random", SIZE).check()


def test_a_wrong_representative_is_noticed() -> None:
    work = HostWork("mix", SIZE)
    scan = work.scan

    def wrong() -> Any:
        found = scan()
        found.representative[17] += 1
        return found

    work.scan = wrong  # type: ignore[method-assign]
    with pytest.raises(WrongResultError, match=r"scan of mix on the CPU: wrong in 1 .* row 17 "):
        work.check()
