"""Files that appear whole or not at all. Dumps hold secrets: each is created with mode 0600.

Root writes where a user says, and the folder may be that user's. So no name is opened twice: the
folder is opened once, the new file has no name until it is complete (``O_TMPFILE``), and what is
written goes to its descriptor, whatever others put into the folder meanwhile. A file without a name
also ends with the process, however that is killed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gpudedup.errors import OutputError

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of ``link`` on file systems without hard links: vfat, some FUSE and network ones."""

_NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of ``fsync`` on file systems that have none, for folders above all."""

EXISTS = "exists already (--force replaces it)"
"""Reason why a file is not written."""


def reason(error: Exception) -> str:
    """Return the reason of an error in one line: that of ``errno`` where set, as pyarrow does."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())


@contextmanager
def whole_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a path to write to; at the end, what was written appears as ``path``.

    The yielded path, ``/proc/self/fd/N``, leads to an open descriptor, in this process only; open
    it as any file. The file is on the disk, and so is its name, when the block has ended. If the
    block raises, nothing is left and ``path`` is as it was.

    :param force: replace an existing file
    :raises OutputError: if ``path`` exists (without force), is no regular file (a symbolic link is
        none), or cannot be created; an OSError or ArrowException raised by the block while writing
        passes through
    """
    with whole_files([path], force=force) as (temporary,):
        yield temporary


@contextmanager
def whole_files(
    paths: Sequence[str | os.PathLike[str]], *, force: bool = False
) -> Iterator[list[Path]]:
    """Yield a path for each of ``paths``, as :func:`whole_file` does; they appear together.

    All are on the disk before the first appears, and have a name before the first replaces another
    (``force``). If one cannot appear, those that did are removed again; only where a rename or the
    disk fails as the last, files that were replaced stay replaced.

    :param force: replace existing files
    :raises OutputError: as :func:`whole_file`
    """
    with ExitStack() as opened:
        files = [opened.enter_context(_opened(Path(path), force)) for path in paths]
        yield [Path(f"/proc/self/fd/{file.fd}") for file in files]
        with ExitStack() as appeared:
            for file in files:
                file.sync()
            for file in files:
                appeared.callback(file.withdraw)
                file.publish()
            # A rename needs no room: what a full disk or a new file of others prevents came before.
            for file in files:
                file.replace()
            for file in files:
                file.sync_folder()
            appeared.pop_all()


def check_room(
    path: str | os.PathLike[str], size: int, *, folder: str | os.PathLike[str] | None = None
) -> None:
    """Ask for the free space of a folder before a large file is begun there.

    :param path: output, for the message
    :param size: bytes that will be written
    :param folder: where they will be written; None: the folder of ``path``
    :raises OutputError: if fewer are free; a file system that does not tell has room for all
    """
    target = Path(path)
    try:
        disk = os.statvfs(target.parent if folder is None else folder)
    except OSError as error:
        raise OutputError(target, reason(error)) from None
    blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
    free = blocks * disk.f_frsize
    if disk.f_blocks and size > free:
        raise OutputError(target, f"needs {size} bytes, {free} are free")


@contextmanager
def _opened(target: Path, force: bool) -> Iterator[_File]:
    with ExitStack() as opened:
        try:
            file = _File(target, force, opened)
        except OSError as error:
            raise OutputError(target, reason(error)) from None
        yield file


class _File:
    """A file that will appear as ``target``; all names are relative to its folder's descriptor.

    :ivar fd: the file's descriptor
    """

    def __init__(self, target: Path, force: bool, opened: ExitStack) -> None:
        self._target = target
        self._name = target.name or "."
        self._force = force
        self._temporary = f".{self._name[:32]}.{secrets.token_hex(8)}.tmp"
        self._has_name = False
        self._appeared = False
        # O_PATH: a folder in which one may write, but not read, will do.
        self._folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, self._folder)
        self._check()
        opened.callback(self._remove_temporary)
        self.fd = self._create()
        opened.callback(os.close, self.fd)

    def _check(self) -> None:
        """Refuse a target that must not be replaced: root could rename a file over /dev/null."""
        try:
            mode = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise OutputError(self._target, "is a directory")
        if stat.S_ISLNK(mode):
            # Its owner chose where it leads. Replaced, /dev/stdout would be gone for all.
            raise OutputError(self._target, "is a symbolic link")
        if not stat.S_ISREG(mode):
            raise OutputError(self._target, "not a regular file")
        if not self._force:
            raise OutputError(self._target, EXISTS)

    def _create(self) -> int:
        """Create the file, without a name where the file system can, and return its descriptor."""
        flags = os.O_RDWR | os.O_CLOEXEC
        with suppress(OSError):
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._folder)
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(self._temporary, flags, 0o600, dir_fd=self._folder)
        self._has_name = True
        return fd

    def _remove_temporary(self) -> None:
        with suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._folder)

    def sync(self) -> None:
        """Bring the content to the disk."""
        try:
            sync(self.fd)
        except OSError as error:
            raise OutputError(self._target, reason(error)) from None

    def publish(self) -> None:
        """Give the file its name; if another has it, one beside it, for :meth:`replace`."""
        try:
            self._publish()
        except OSError as error:
            raise OutputError(self._target, reason(error)) from None

    def _publish(self) -> None:
        try:
            # A link, unlike a rename, fails if another process made the file meanwhile.
            self._link(self._name)
            self._appeared = True
            return
        except FileExistsError:
            if not self._force:
                raise OutputError(self._target, EXISTS) from None
        except OSError as error:
            if error.errno not in _NO_LINKS or not self._has_name:
                raise
        self._check()
        if not self._has_name:
            self._link(self._temporary)

    def replace(self) -> None:
        """Give the file its name, if :meth:`publish` did not."""
        if self._appeared:
            return
        folder = self._folder
        try:
            os.replace(self._temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise OutputError(self._target, reason(error)) from None

    def _link(self, name: str) -> None:
        if self._has_name:
            os.link(
                self._temporary,
                name,
                src_dir_fd=self._folder,
                dst_dir_fd=self._folder,
                # If it is a symbolic link now, another put it there.
                follow_symlinks=False,
            )
        else:
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._folder)

    def withdraw(self) -> None:
        """Remove the file again if it appeared where none was."""
        if self._appeared:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder)

    def sync_folder(self) -> None:
        """Bring the file's name to the disk."""
        try:
            with ExitStack() as opened:
                folder = os.open(
                    ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder
                )
                opened.callback(os.close, folder)
                sync(folder)
        except PermissionError:
            # A folder that may not be read cannot be synchronised alone.
            os.sync()
        except OSError as error:
            raise OutputError(self._target, reason(error)) from None


def sync(fd: int) -> None:
    """Bring a file or folder to the disk, where its file system can do that.

    :raises OSError: if it fails
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
