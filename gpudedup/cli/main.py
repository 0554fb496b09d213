"""The application, and the one place where errors become messages and exit codes.

Results go to stdout; progress, notes and errors to stderr, each note one line.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn, cast

import typer

import gpudedup
from gpudedup.cli import (
    bench,
    capture,
    generate,
    import_,
    info,
    merge,
    replay,
    restore,
    scan,
    trace,
    verify,
)
from gpudedup.cli.common import clipped, say
from gpudedup.cli.streams import buffered_stdout
from gpudedup.errors import ExitCode, GpudedupError

app = typer.Typer(
    name="gpudedup",
    help="Page deduplication for memory images: which pages are equal, and what sharing them saves."
    "\n\nExit codes: 0 done; 1 failed, or verify found damage; 2 usage; 3 part of the input was "
    "unreadable, or is damaged; 4 what was asked for does not work on this machine; 128 + n ended "
    "by signal n, 130 by Ctrl-C.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("scan")(scan.scan)
app.command("capture")(capture.capture)
app.command("import")(import_.import_)
app.command("merge")(merge.merge)
app.command("restore")(restore.restore)
app.command("verify")(verify.verify)
app.command("generate")(generate.generate)
app.command("replay")(replay.replay)
app.add_typer(trace.app, name="trace")
app.command("bench")(bench.bench)
app.command("info")(info.info)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpudedup {gpudedup.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    from gpudedup.cli.bus_errors import bus_errors_named

    context.with_resource(bus_errors_named())


class _Ended(BaseException):
    """A fatal signal: unwinds as Ctrl-C does, to remove temporary files and resume processes."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


_NOT_FATAL = {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG,
    signal.SIGWINCH,
}  # fmt: skip
_OF_A_FAULT = {
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS,
    signal.SIGTRAP,
}  # fmt: skip
"""Raised by an instruction or ``abort``, which would run again after a handler of Python's."""


_MOMENT_S = 0.01
"""Seconds until a signal that a finalizer dropped is raised again."""


@contextmanager
def _fatal_signals_unwind() -> Iterator[None]:
    """Make every signal that would end this process unwind it first; only the first one counts.

    What is ignored stays so: by nohup, and SIGPIPE and SIGXFSZ, which Python turns into errors.
    """
    others = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - _NOT_FATAL - _OF_A_FAULT
    before = {number: signal.getsignal(number) for number in others}
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    ours = {number: handler for number, handler in before.items() if handler in defaults}
    ending, again = 0, False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending, again
        if ending and not again:
            return
        ending, again = ending or number, False
        raise KeyboardInterrupt if ending == signal.SIGINT else _Ended(ending)

    def dropped(what: sys.UnraisableHookArgs) -> None:
        """Raise once more, a moment later, what came while something was finalized."""
        nonlocal again
        if ending and isinstance(what.exc_value, (_Ended, KeyboardInterrupt)):
            again = True
            signal.setitimer(signal.ITIMER_REAL, _MOMENT_S)
        else:
            hook(what)

    hook, sys.unraisablehook = sys.unraisablehook, dropped
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in ours.items():
            # Ignored, not handled: Python gives up its handlers before it has exited.
            signal.signal(number, signal.SIG_IGN if ending else handler)


_TyperUsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
"""Base of what Typer raises on wrong usage. It has no public name, and its module depends on
Typer's version."""


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    code: int | None = ExitCode.DONE
    try:
        with _fatal_signals_unwind(), buffered_stdout():
            code = app(prog_name="gpudedup", standalone_mode=False)
    except _TyperUsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(ExitCode.USAGE)
        _fail(_usage(error), ExitCode.USAGE)
    except typer.Abort:
        _fail("aborted", ExitCode.FAILED)
    except KeyboardInterrupt:
        # So early that Typer, which ends commands with this code, was not there yet.
        sys.exit(ExitCode.INTERRUPTED)
    except GpudedupError as error:
        _fail(str(error), error.exit_code)
    except _Ended as end:
        _fail((signal.strsignal(end.number) or f"signal {end.number}").lower(), 128 + end.number)
    except MemoryError:
        _fail("out of memory", ExitCode.FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(name + (error.strerror or str(error)), ExitCode.FAILED)
    sys.exit(code or ExitCode.DONE)


def _usage(error: typer.BadParameter) -> str:
    """Return the line for an error of Typer's own."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx else "gpudedup"
    return f"{message[:1].lower()}{clipped(message[1:])}; see {command} --help"


def _fail(message: str, code: int) -> NoReturn:
    try:
        say(message)
    except OSError:
        # The terminal is gone; flushing what is left would change the code.
        sys.stderr = None
    try:
        sys.stdout.flush()
    except OSError:
        # The same for what of a result did not fit.
        sys.stdout = None
    sys.exit(code)
