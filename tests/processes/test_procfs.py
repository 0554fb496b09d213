"""The kind of a mapping, from its name, VmFlags and file system."""

from __future__ import annotations

import pytest

from gpudedup.processes.procfs import kind_of


@pytest.mark.parametrize(
    ("name", "flags", "filesystem", "kind"),
    [
        ("", "rd wr mr", "", "anon"),
        ("[heap]", "rd wr", "", "anon"),
        ("[stack]", "rd wr gd", "", "anon"),
        ("[anon:scudo [x]]", "rd wr", "", "anon"),
        ("[anon_shmem:pool]", "rd wr sh", "", "shmem"),
        ("[vdso]", "rd ex", "", "kernel"),
        ("[vvar]", "rd pf io", "", "kernel"),
        ("/dev/zero (deleted)", "rd wr sh", "", "shmem"),
        ("/dev/zero", "rd wr", "devtmpfs", "anon"),
        ("/SYSV00000000 (deleted)", "rd wr sh", "", "shmem"),
        ("/memfd:doublemapper (deleted)", "rd ex sh", "", "shmem"),
        ("/anon_hugepage (deleted)", "rd wr ht", "", "anon"),
        ("/anon_hugepage (deleted)", "rd wr sh ht", "", "shmem"),
        ("/dev/shm/pool", "rd wr sh", "tmpfs", "shmem"),
        ("/dev/hugepages/pool", "rd wr sh ht", "hugetlbfs", "shmem"),
        ("/dev/nvidia-uvm", "rd wr sh mm", "devtmpfs", "device"),
        ("/dev/mem", "rd sh pf io", "tmpfs", "device"),
        ("anon_inode:[io_uring]", "rd wr sh", "", "kernel"),
        ("anon_inode:kvm-vcpu:0", "rd wr sh pf", "", "device"),
        ("/usr/lib/libc.so.6", "rd ex", "ext4", "file"),
    ],
)
def test_kinds(name: str, flags: str, filesystem: str, kind: str) -> None:
    assert kind_of(name, flags, filesystem) == kind
