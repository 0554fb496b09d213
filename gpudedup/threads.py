"""Start threads; one that the system does not start is a :class:`ThreadError`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gpudedup.errors import ThreadError

_REFUSED = "cannot start a thread: a limit on processes (ulimit -u, pids.max) or on memory"


class ThreadPool(ThreadPoolExecutor):
    """A pool of threads, started as work is submitted."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """Queue work for a thread.

        :raises ThreadError: if no thread can be started for it. One that runs already may take it
            up all the same, before the pool's block has ended.
        """
        try:
            return super().submit(work, *args, **named)
        except RuntimeError:
            raise ThreadError(_REFUSED) from None


def start_daemon(name: str, work: Callable[..., object], *args: object) -> None:
    """Start a thread that the end of the program does not wait for.

    :raises ThreadError: if it cannot be started
    """
    try:
        threading.Thread(target=work, args=args, daemon=True, name=name).start()
    except RuntimeError:
        raise ThreadError(_REFUSED) from None
