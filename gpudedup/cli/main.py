"""The application, and the one place where errors become messages and exit codes.

Results go to stdout; progress, notes and errors to stderr, each note one line.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

import gpudedup
from gpudedup.cli import (
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
from gpudedup.cli.common import say
from gpudedup.errors import ExitCode, GpudedupError

app = typer.Typer(
    name="gpudedup",
    help="Page deduplication for memory images: which pages are equal, and what sharing them saves."
    "\n\nExit codes: 0 done; 1 failed; 2 usage; 3 done, but part of the input was unreadable; "
    "4 the engine asked for is not usable; 130 interrupted.",
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
app.command("info")(info.info)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpudedup {gpudedup.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Options before the command."""


class _Terminated(BaseException):
    """SIGTERM: unwinds as Ctrl-C does, to remove temporary files and resume stopped processes."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except GpudedupError as error:
        _fail(str(error), error.exit_code)
    except _Terminated:
        _fail("terminated", 128 + signal.SIGTERM)
    except MemoryError:
        _fail("out of memory", ExitCode.FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(name + (error.strerror or str(error)), ExitCode.FAILED)
    sys.exit(ExitCode.DONE)


def _fail(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)
