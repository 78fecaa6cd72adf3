"""Settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import mmap

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
_LARGEST_THRESHOLD = 2**31 - 1
_RESERVED, _HUGE_PAGE = 2**30, 2**21  # bytes


def keep_freed_memory() -> bool:
    """Keep large freed blocks in the process instead of handing them back to the kernel (glibc only).

    A network allocates the same large arrays for every patch; getting them anew costs a page fault for every
    4 KiB, a quarter of the time of a forward. Call it at the start of a command. Returns whether it took effect.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        kept = bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_THRESHOLD))
    except (OSError, AttributeError):
        return False
    if kept:
        _take_huge_pages(libc)
    return kept


def give_memory_back() -> bool:
    """Hand freed blocks to the kernel after all (glibc only), where something else will be allocated than before.

    Blocks that were kept lie between others, and leave holes into which larger ones do not fit. Returns whether there
    was anything to hand back.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        handed_back = bool(libc.malloc_trim(0))
    except (OSError, AttributeError):
        return False
    _take_huge_pages(libc)
    return handed_back


def _take_huge_pages(libc: ctypes.CDLL) -> None:
    """Have the heap's next GiB come in pages of 2 MiB, so that growing costs little; none of it is touched here.

    Where there is no room for it, or the kernel has no such pages, all stays as it is.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_RESERVED)
    if block is None:
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, _RESERVED - _HUGE_PAGE, getattr(mmap, "MADV_HUGEPAGE", 14))
    libc.free(block)
