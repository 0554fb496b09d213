"""Which folders compiled code may be loaded from: loading it runs it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from functools import cache
from pathlib import Path


def private_folder(path: str) -> str | None:
    """Return the real path of a folder into which nobody else can put files, or None.

    The folder and all its parents, links resolved, belong to the effective user or to root, and
    nobody else may write there: neither everybody, nor a group with other members, nor those that
    an access control list names. Of parents a sticky one will do, such as ``/tmp``: what belongs to
    the user there cannot be renamed or removed by others. A path that is not absolute is refused:
    it leads elsewhere from each working folder. What does not exist yet is not looked at.
    """
    if not Path(path).is_absolute():
        return None
    real = Path(os.path.realpath(path))
    for folder in (*reversed(real.parents), real):
        try:
            status = folder.lstat()
        except FileNotFoundError:
            break
        except OSError:
            return None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return None
        protects = folder != real and status.st_mode & stat.S_ISVTX
        if _others_may_write(folder, status) and not protects:
            return None
    return str(real)


def _others_may_write(path: Path, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        # With an access control list, the bits of the group are the most that any entry gives.
        os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return not _is_own_group(status.st_gid)
    return True


@cache
def _is_own_group(gid: int) -> bool:
    """Return whether the group is the user's alone: many systems give each user one."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}
