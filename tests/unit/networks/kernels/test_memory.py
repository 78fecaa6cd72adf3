"""What a process with a network keeps, and in which pages; each in a process of its own, since it cannot be undone."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

COUNT = """
import numpy as np
from medsegmamba_bids.networks.kernels.memory import give_memory_back, keep_freed_memory

def now(name, file="/proc/self/smaps_rollup"):
    with open(file) as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024  # MiB

def fill():
    return [np.full(2**23, 1, np.uint8) for _ in range(32)]  # 256 MiB

kept = keep_freed_memory()
before = now("Rss:"), now("AnonHugePages:")
arrays = fill()
filled = now("Rss:"), now("AnonHugePages:")
last = arrays.pop()
del arrays
freed = now("Rss:")
give_memory_back()
handed_back = now("Rss:")
again = fill()
print(kept, filled[0] - before[0], filled[1] - before[1], freed - before[0], handed_back - before[0])
print(now("AnonHugePages:") - before[1])
"""


@pytest.fixture(scope="module")
def counted():
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("no /proc/self/smaps_rollup")
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.split()
    if ran.pop(0) != "True":
        pytest.skip("the C library has no such setting")
    return [int(number) for number in ran]


def test_freed_memory_is_kept_until_it_is_handed_back(counted):
    filled, _, freed, handed_back, _ = counted
    assert filled > 250
    assert freed > 250
    assert handed_back < 60  # the last array, and the pages that it shares


def test_the_heap_comes_in_huge_pages_before_and_after(counted):
    if not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text():
        pytest.skip("the kernel has no huge pages, or gives none")
    _, huge, _, _, huge_again = counted
    assert huge > 200
    assert huge_again > 200


def test_where_the_c_library_is_another_nothing_happens(monkeypatch):
    from medsegmamba_bids.networks.kernels import memory

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    assert memory.keep_freed_memory() is False
    assert memory.give_memory_back() is False


def test_no_room_to_reserve_changes_nothing():
    ask = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30));" + (
        "from medsegmamba_bids.networks.kernels.memory import give_memory_back, keep_freed_memory;"
        "print(keep_freed_memory(), give_memory_back() in (True, False), len(bytes(10**8)))"
    )
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[1:] == ["True", "100000000"]
