"""What Typer itself refuses: one line that names the command's help, nothing raw, code 2."""

from __future__ import annotations

import pytest
from typer.utils import get_params_from_function

from gpudedup.cli.main import app

from .conftest import Run

HOSTILE = "\x1b]0;owned\x07\x1b[31m\u202e\nb\udcff"
LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--colour"], "no such option: --colour; see gpudedup --help"),
        (["sing"], "no such command 'sing'; see gpudedup --help"),
        (["trace", "sing"], "no such command 'sing'; see gpudedup trace --help"),
        (["scan", "--colour"], "no such option: --colour; see gpudedup scan --help"),
        (["scan"], "missing argument 'IMAGE'; see gpudedup scan --help"),
        (["replay", "image"], "missing argument 'TRACE'; see gpudedup replay --help"),
        (["capture"], "missing option '--pid' / '-p'; see gpudedup capture --help"),
        (
            ["trace", "generate"],
            "missing option '--output' / '-o'; see gpudedup trace generate --help",
        ),
        (
            ["generate", "-o", "x", "--size", "4 cats"],
            "invalid value for '--size': '4 cats' is not a size such as 4096, 512MiB or 4G;"
            " see gpudedup generate --help",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line(run: Run, arguments: list[str], line: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out, done.err) == (2, "", f"gpudedup: {line}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["WORD"],
        ["--WORD"],
        ["trace", "WORD"],
        ["scan", "image", "--WORD"],
        ["scan", "image", "--threads", "WORD"],
        ["scan", "image", "--threads"],
        ["scan", "image", "--json=WORD"],
        ["scan", "image", "--devices", "WORD"],
        ["generate", "-o", "out", "--size", "WORD"],
        ["generate", "-o", "out", "--size", "4K", "--zero", "WORD"],
        ["capture", "-o", "out", "--pid", "WORD"],
        ["verify", "merged", "WORD", "WORD"],
        ["trace", "record", "-o", "out", "--pid", "WORD"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("word", [HOSTILE, LONG], ids=["hostile", "long"])
def test_what_was_typed_is_printed_as_text(run: Run, arguments: list[str], word: str) -> None:
    done = run(*(typed.replace("WORD", word) for typed in arguments))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gpudedup: ")
    assert done.err.endswith("\n")
    assert done.err[:-1].isprintable()
    assert " --help" in done.err
    assert len(done.err) < 400


@pytest.mark.parametrize("arguments", [[], ["trace"]])
def test_without_a_command_the_whole_help_is_printed(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err == run(*arguments, "--help").out


def test_every_argument_is_explained() -> None:
    commands = [*app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance
        commands += group.typer_instance.registered_commands
    assert len(commands) > 10
    for command in commands:
        assert command.callback
        for name, parameter in get_params_from_function(command.callback).items():
            assert parameter.default.help, f"{command.callback.__name__}: {name}"


@pytest.mark.parametrize("arguments", [[], ["scan"], ["trace"], ["trace", "record"]])
def test_help(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join(['gpudedup', *arguments])} ")
    assert done.out == run(*arguments, "-h").out
