"""What a process that computes is set up with: its threads, and an allocator that keeps what was freed.

glibc maps an activation of megabytes anew at every use and gives it back after: the kernel then fills
pages with zeros for as long as the processor computes (docs/performance.md). In any thread but the first,
where a Tune trial runs, that holds for tensors of up to 64 MiB: a heap of glibc's is no larger there.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 2**31 - 1
OLD_LARGEST = 2**25  # the most that a glibc before 2.35 takes


def set_up(threads: int | None = None) -> None:
    """Take so many threads, or as many as torch takes by itself, and keep memory that was freed."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc to map nothing by itself and to give nothing back; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # no glibc; no Unix
        return False
    mapped = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, OLD_LARGEST)
    return bool(mapped and mallopt(TRIM_THRESHOLD, LARGEST))


def give_back() -> None:
    """Give the system the memory that this process holds without need."""
    gc.collect()
    with contextlib.suppress(AttributeError, TypeError):  # no glibc; no Unix
        ctypes.CDLL(None).malloc_trim(0)
