"""Absurd numbers in every option that takes one, found by its annotation: refused in one line."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, get_args

import pytest
import typer
from typer.utils import get_params_from_function

from gpudedup.cli.main import app

from ..traces.common import event, trace_of, write_image, write_trace
from .conftest import Run

ABSURD = [
    "0", "-1", str(1 << 63), str(1 << 64), "1e300", "-1e300", "nan", "inf", "-inf", "1e-300",
    "9" * 5000, "",
]  # fmt: skip

NO_PROCESS = 1 << 22
"""Linux numbers processes below this."""

COMMANDS = {
    "scan": "IMAGE",
    "capture": f"--pid {NO_PROCESS} -o OUT",
    "import": "IMAGE -o OUT",
    "merge": "IMAGE -o OUT",
    "restore": "MERGED -o OUT",
    "verify": "MERGED",
    "generate": "-o OUT --size 64K",
    "replay": "IMAGE TRACE",
    "bench": "--cpu --size 1M --rounds 1",
    "trace generate": "-o OUT --image IMAGE --mix write-heavy --events 10",
    "trace record": f"--pid {NO_PROCESS} -o OUT",
}
"""Of each command arguments that it works with."""

WORKS: dict[tuple[str, str], list[str]] = {
    ("restore", "--input"): ["0"],
    ("scan", "--device-memory"): ["0"],
    ("scan", "--devices"): ["0"],
    ("generate", "--zero"): ["0", "1e-300"],
    ("generate", "--duplicate"): ["0", "1e-300"],
    ("generate", "--seed"): ["0", str(1 << 63)],
    ("replay", "--devices"): ["0"],
    ("replay", "--samples"): [str(1 << 63), str(1 << 64)],
    ("trace generate", "--events"): ["0"],
    ("trace generate", "--seed"): ["0", str(1 << 63)],
    ("trace generate", "--merge-every"): ["0"],
}
"""Those of the absurd numbers that an option takes."""


class Option(NamedTuple):
    """An option that takes a number.

    :param command: such as ``trace record``
    """

    command: str
    name: str


def options(app: typer.Typer, before: str = "") -> Iterator[Option]:
    """Yield the options of all commands that take a number, or several."""
    for group in app.registered_groups:
        assert group.typer_instance
        yield from options(group.typer_instance, f"{group.name} ")
    for command in app.registered_commands:
        function = command.callback
        assert function
        name = before + (command.name or function.__name__)
        for parameter in get_params_from_function(function).values():
            info = parameter.default
            words = re.findall(r"\w+", info.metavar or "")
            if {int, float} & set(flat(parameter.annotation)) or "N" in words:
                named = [d for d in info.param_decls or () if d.startswith("--")]
                yield Option(name, [*named, f"--{parameter.name.replace('_', '-')}"][0])


def flat(kind: Any) -> list[Any]:
    """Return the types that an annotation such as ``list[int] | None`` is made of."""
    return [part for each in get_args(kind) for part in flat(each)] or [kind]


class EndlessError(BaseException):
    """A command did not end."""


@pytest.fixture
def limits() -> Iterator[None]:
    """End a command that takes minutes, 4 GiB more than now, or a file of 64 MiB."""

    def end(number: int, frame: FrameType | None) -> None:
        raise EndlessError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + (4 << 30),
        resource.RLIMIT_FSIZE: 64 << 20,
    }
    before = {limit: resource.getrlimit(limit) for limit in most}
    handler = signal.signal(signal.SIGALRM, end)
    try:
        signal.alarm(300)
        for limit, value in most.items():
            resource.setrlimit(limit, (value, before[limit][1]))
        yield
    finally:
        signal.alarm(0)
        for limit, old in before.items():
            resource.setrlimit(limit, old)
        signal.signal(signal.SIGALRM, handler)


@pytest.fixture
def given(run: Run, tmp_path: Path) -> dict[str, str]:
    """Return what the words in :data:`COMMANDS` stand for."""
    image = write_image(tmp_path / "image.arrow", [("anon", [1, 1, 2])])
    trace = write_trace(tmp_path / "trace", trace_of([event("write"), event("read", 0, 1)]))
    assert run("merge", image, "-o", tmp_path / "merged").code == 0
    return {
        "IMAGE": str(image), "TRACE": str(trace), "MERGED": str(tmp_path / "merged"),
        "OUT": str(tmp_path / "out"),
    }  # fmt: skip


OPTIONS = sorted(options(app))


def test_the_options_are_found() -> None:
    assert {option.command for option in OPTIONS} == set(COMMANDS)
    assert len(OPTIONS) > 30
    for option in [
        ("scan", "--devices"), ("generate", "--group-size"), ("capture", "--pid"),
        ("trace record", "--interval"), ("merge", "--max-page-sharing"),
    ]:  # fmt: skip
        assert option in OPTIONS


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_absurd_numbers(
    run: Run, tmp_path: Path, given: dict[str, str], limits: None, option: Option
) -> None:
    words = [given.get(word, word) for word in COMMANDS[option.command].split()]
    taken = []
    for number in ABSURD:
        done = run(*option.command.split(), *words, f"{option.name}={number}")
        assert "Traceback" not in done.err
        if done.code == 0 or done.err == f"gpudedup: pid {NO_PROCESS}: no such process\n":
            taken.append(number)
            (tmp_path / "out").unlink(missing_ok=True)
            continue
        assert (done.code, done.out) == (2, ""), number
        assert done.err.startswith("gpudedup: "), number
        assert done.err[:-1].isprintable(), number
        assert len(done.err) < 400 + len(number), number
        assert not (tmp_path / "out").exists(), number
    assert taken == WORKS.get(option, [])
