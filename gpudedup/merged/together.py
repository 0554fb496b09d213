"""Several files of one folder that appear together or not at all.

All are written, to the disk, before the first is renamed. If a rename fails, those before it are
taken back, and files that were replaced are put back. Only a kill between two renames leaves some;
what they replaced is then in the temporary folder. Files are named relative to open folders, so
that who may rename the temporary folder cannot lead the writes elsewhere.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from gpudedup.errors import OutputError
from gpudedup.output import EXISTS, reason, sync

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Together:
    """Files that are being written; :meth:`create` opens one.

    :param names: their names in ``folder``, each once
    :param at: descriptor of the folder
    :param hidden: descriptor of the temporary folder in it
    """

    folder: Path
    names: Sequence[str]
    force: bool
    at: int
    temporary: Path
    hidden: int
    _number: dict[str, int] = field(init=False)
    _is_done: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._number = {name: number for number, name in enumerate(self.names)}

    @contextmanager
    def create(self, name: str) -> Iterator[FileIO]:
        """Open the file ``name`` to write; when the block ends it is on the disk.

        :raises OutputError: if it cannot be written
        """
        try:
            fd = os.open(self._new(name), _NEW, 0o600, dir_fd=self.hidden)
            with FileIO(fd, "r+b") as out:
                yield out
                sync(fd)
        except OSError as error:
            raise OutputError(self.folder / name, reason(error)) from None

    def _new(self, name: str) -> str:
        return f"{self._number[name]}.new"

    def _old(self, name: str) -> str:
        return f"{self._number[name]}.old"

    def publish(self) -> None:
        """Give all files their names; if that fails, leave the folder as it was.

        :raises OutputError: naming the file that could not be renamed
        """
        try:
            made = {name: self._identity(self._new(name), self.hidden) for name in self.names}
        except OSError as error:
            raise OutputError(self.folder, reason(error)) from None
        try:
            for name in self.names:
                try:
                    self._place(name)
                except FileExistsError:
                    raise OutputError(self.folder / name, EXISTS) from None
                except OSError as error:
                    raise OutputError(self.folder / name, reason(error)) from None
            _to_disk(self.folder, self.at)
            self._is_done = True
        except BaseException:
            for name in self.names:
                self._take_back(name, made[name])
            raise

    def _place(self, name: str) -> None:
        """Rename one file; keep what it replaces under another name meanwhile."""
        if self.force:
            _check(self.folder / name, self.force)
            if self._identity(name, self.at):
                try:
                    # A link leaves the old file in place until the new one replaces it.
                    os.link(
                        name, self._old(name), src_dir_fd=self.at, dst_dir_fd=self.hidden,
                        follow_symlinks=False,
                    )  # fmt: skip
                except OSError:
                    os.rename(name, self._old(name), src_dir_fd=self.at, dst_dir_fd=self.hidden)
            os.rename(self._new(name), name, src_dir_fd=self.hidden, dst_dir_fd=self.at)
            return
        try:
            # Unlike a rename it fails if another process made the file meanwhile.
            os.link(self._new(name), name, src_dir_fd=self.hidden, dst_dir_fd=self.at)
        except FileExistsError:
            raise
        except OSError:
            # No links on this file system.
            if self._identity(name, self.at):
                raise FileExistsError from None
            os.rename(self._new(name), name, src_dir_fd=self.hidden, dst_dir_fd=self.at)

    def _take_back(self, name: str, made: tuple[int, int] | None) -> None:
        """Undo :meth:`_place`, whether it was done, half done or not begun."""
        with suppress(OSError):
            now = self._identity(name, self.at)
            if self._identity(self._old(name), self.hidden) and now in (None, made):
                os.rename(self._old(name), name, src_dir_fd=self.hidden, dst_dir_fd=self.at)
            elif now is not None and now == made:
                os.unlink(name, dir_fd=self.at)

    def clean(self) -> None:
        """Remove the temporary folder; a file that could not be put back stays in it."""
        for name in self.names:
            with suppress(OSError):
                os.unlink(self._new(name), dir_fd=self.hidden)
            with suppress(OSError):
                # Without a look where none is needed: a disk that fails leaves less behind.
                if self._is_done or self._is_in_place(name):
                    os.unlink(self._old(name), dir_fd=self.hidden)
        with suppress(OSError):
            os.rmdir(self.temporary.name, dir_fd=self.at)

    def _is_in_place(self, name: str) -> bool:
        """Return whether what was kept of a file is still there under its name."""
        old = self._identity(self._old(name), self.hidden)
        return bool(old) and old == self._identity(name, self.at)

    @staticmethod
    def _identity(name: str, folder: int) -> tuple[int, int] | None:
        """Return what tells a file from all others; None: there is none of that name."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


@contextmanager
def together(folder: Path, names: Sequence[str], *, force: bool = False) -> Iterator[Together]:
    """Give files to write, which get their ``names`` in ``folder`` when the block ends.

    If the block raises, or one of them cannot be renamed, the folder stays as it was; it is made
    if need be, and removed again then. All files must have been created by the end of the block.

    :param force: replace existing files
    :raises OutputError: if a file exists (without force), is no regular file, or cannot be written
    """
    made = _make(folder)
    with ExitStack() as opened:
        if made:
            opened.push(lambda kind, *_: _remove(folder) if kind else None)
        for name in names:
            _check(folder / name, force)
        try:
            at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, at)
            temporary = Path(tempfile.mkdtemp(prefix=".restore.", suffix=".tmp", dir=folder))
            opened.callback(_remove, temporary)
            hidden = os.open(temporary.name, _FOLDER, dir_fd=at)
        except OSError as error:
            raise OutputError(folder, reason(error)) from None
        opened.callback(os.close, hidden)
        files = Together(folder, names, force, at, temporary, hidden)
        opened.callback(files.clean)
        try:
            owner = os.fstat(hidden).st_uid
        except OSError as error:
            raise OutputError(folder, reason(error)) from None
        if owner != os.geteuid():
            raise OutputError(folder, "another user interferes with the files in it")
        yield files
        files.publish()


def _make(folder: Path) -> bool:
    """Make the folder; return False if it exists."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise OutputError(folder, "not a directory") from None
        return False
    except OSError as error:
        raise OutputError(folder, reason(error)) from None
    return True


def _to_disk(folder: Path, fd: int) -> None:
    """Wait until the names in a folder are on the disk."""
    try:
        sync(fd)
    except OSError as error:
        raise OutputError(folder, reason(error)) from None


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check(target: Path, force: bool) -> None:
    """Refuse a target that must not be replaced."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(target, reason(error)) from None
    if not stat.S_ISREG(mode):
        raise OutputError(target, "not a regular file")
    if not force:
        raise OutputError(target, EXISTS)
