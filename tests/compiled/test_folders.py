"""Whose folders compiled code is loaded from: nobody else may be able to put files there."""

from __future__ import annotations

import grp
import os
import pwd
import struct
from pathlib import Path

import pytest

from gpudedup.compiled import folders
from gpudedup.compiled.folders import private_folder

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")

OTHER = 65534
"""A user and a group that are not those of the tests."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return ``a/b/cache`` below a folder that is safe."""
    path = tmp_path / "a" / "b" / "cache"
    for folder in (*reversed(path.parents), path):
        if tmp_path in folder.parents:
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
    if private_folder(str(tmp_path)) is None:
        pytest.skip("others may write to the temporary directory")
    return path


def test_a_folder_of_the_user(cache: Path) -> None:
    assert private_folder(str(cache)) == str(cache)
    assert private_folder(str(cache / "not" / "yet")) == str(cache / "not" / "yet")


@pytest.mark.parametrize("at", [".", "..", "../.."])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o702])
def test_everybody_may_write(cache: Path, at: str, mode: int) -> None:
    (cache / at).chmod(mode)
    assert private_folder(str(cache)) is None
    assert private_folder(str(cache / "not yet")) is None


def test_a_sticky_parent_protects_what_is_the_user_s(cache: Path) -> None:
    cache.parent.chmod(0o1777)
    assert private_folder(str(cache)) == str(cache)
    cache.parent.chmod(0o755)
    cache.chmod(0o1777)
    assert private_folder(str(cache)) is None


@needs_root
@pytest.mark.parametrize("at", [".", "..", "../.."])
def test_a_folder_of_another(cache: Path, at: str) -> None:
    os.chown(cache / at, OTHER, -1)
    (cache / at).chmod(0o700)
    assert private_folder(str(cache)) is None


@needs_root
def test_what_another_made_in_a_sticky_folder(cache: Path) -> None:
    cache.parent.chmod(0o1777)
    os.chown(cache, OTHER, OTHER)
    assert private_folder(str(cache)) is None


@needs_root
@pytest.mark.parametrize("leads_to", ["theirs", "ours"])
def test_links_are_resolved(cache: Path, tmp_path: Path, leads_to: str) -> None:
    """What a link leads to counts; who may change the link gains nothing by it later."""
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir()
    os.chown(theirs, OTHER, OTHER)
    link.symlink_to(cache if leads_to == "ours" else theirs)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert private_folder(str(link)) == (str(cache) if leads_to == "ours" else None)


@pytest.mark.parametrize("path", ["", "cache", "~/.cache/numba", "./cache"])
def test_a_relative_path(cache: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(cache.parent)
    assert private_folder(path) is None


def test_no_folder(cache: Path) -> None:
    (cache / "file").touch()
    assert private_folder(str(cache / "file")) is None
    assert private_folder(str(cache / "file" / "below")) is None
    assert private_folder(os.devnull) is None


@pytest.mark.parametrize(
    ("name", "members", "private"),
    [(None, [], True), (None, [None], True), (None, ["eve"], False), ("staff", [], False)],
)
def test_a_group_of_one(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    members: list[str | None],
    private: bool,
) -> None:
    """None: the user's name. With umask 002 each folder of a user is writable by such a group."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    gid = cache.stat().st_gid
    group = grp.struct_group((name or user, "x", gid, [m or user for m in members]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    folders._is_own_group.cache_clear()
    cache.chmod(0o775)
    assert private_folder(str(cache)) == (str(cache) if private else None)
    folders._is_own_group.cache_clear()


@needs_root
def test_a_group_without_a_name(cache: Path) -> None:
    os.chown(cache, -1, 4_000_000)
    cache.chmod(0o775)
    assert private_folder(str(cache)) is None


def test_an_access_control_list(cache: Path) -> None:
    """``setfacl -m u:65534:rwx``: the mask, which names another, stands in the group's bits."""
    user, named, group, mask, other = 1, 2, 4, 16, 32
    entries = [(user, 7, -1), (named, 7, OTHER), (group, 5, -1), (mask, 7, -1), (other, 5, -1)]
    content = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in entries
    )
    try:
        os.setxattr(cache, "system.posix_acl_access", content)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    assert private_folder(str(cache)) is None
