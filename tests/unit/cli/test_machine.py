"""Processors and memory by the control groups of both versions, as the kernel's files describe them."""

import re

import pytest

from medsegmamba_bids.cli import machine
from medsegmamba_bids.cli.machine import amount_gb, group_folders, memory_gb, processors


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Write the files of a process and of control groups; a machine of 64 processors and plenty of memory."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.get)  # 64 GiB
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)

    def write(files, cgroup, mounts):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(cgroup)
        (proc / "mountinfo").write_text(mounts.replace("SYS", str(tmp_path / "sys")))
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return proc

    return write


V2 = "29 23 0:26 / SYS rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 23 0:27 / SYS/memory rw - cgroup cgroup rw,memory\n"
    "31 23 0:28 / SYS/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


def test_a_limit_of_the_group_itself(kernel):
    files = {"job/step/memory.max": 10**9, "job/step/cpu.max": "250000 100000", "job/memory.max": "max"}
    proc = kernel(files, "0::/job/step\n", V2)
    assert memory_gb(proc) == 1.0
    assert processors(proc) == 2


def test_a_limit_of_a_group_around_it(kernel):
    files = {
        "job/memory.max": 2 * 10**9,
        "job/step/memory.max": "max",
        "job/step/memory.high": 3 * 10**9,
        "cpu.max": "50000 100000",
        "job/cpu.max": "max 100000",
    }
    proc = kernel(files, "0::/job/step\n", V2)
    assert memory_gb(proc) == 2.0
    assert processors(proc) == 1  # half a processor


def test_version_1(kernel):
    files = {
        "memory/docker/abc/memory.limit_in_bytes": 4 * 10**9,
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": 300000,
        "cpu,cpuacct/docker/abc/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
    }
    proc = kernel(files, "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n", V1)
    assert memory_gb(proc) == 4.0
    assert processors(proc) == 3


@pytest.mark.parametrize("group", ["/docker/abc", "/"])
def test_within_a_container_the_mounted_top_is_the_own_group(kernel, group):
    mounts = V2.replace("0:26 / SYS", f"0:26 {group} SYS")
    proc = kernel({"memory.max": 10**9}, f"0::{group}\n", mounts)
    assert memory_gb(proc) == 1.0


def test_a_group_outside_of_what_is_mounted_is_seen_by_its_top(kernel, tmp_path):
    proc = kernel({"memory.max": 10**9}, "0::/../../other\n", V2.replace("0:26 / SYS", "0:26 /docker/abc SYS"))
    assert group_folders("", proc) == [tmp_path / "sys"]
    assert memory_gb(proc) == 1.0


def test_blanks_in_the_place_of_a_mount(kernel, tmp_path):
    proc = kernel({"with blank/memory.max": 10**9}, "0::/\n", V2.replace("SYS", r"SYS/with\040blank"))
    assert memory_gb(proc) == 1.0


def test_without_limits_the_machine_counts(kernel, monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (machine.resource.RLIM_INFINITY,) * 2)
    proc = kernel({"memory.max": "max", "cpu.max": "max 100000"}, "0::/\n", V2)
    assert memory_gb(proc) == pytest.approx(68.72, abs=0.01)
    assert processors(proc) == 64
    assert group_folders("", proc.parent) == []  # no such files: not Linux


def test_ulimit_counts(kernel, monkeypatch):
    proc = kernel({}, "", "")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (3 * 10**9, machine.resource.RLIM_INFINITY))
    assert memory_gb(proc) == 3.0


@pytest.mark.parametrize("text", ["", "G", "8 apples", "8GG", "eight", "1e", "8,5"])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        amount_gb(text)
