"""How this process holds on to memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed() -> None:
    """Keeps the memory that is freed, for the whole process, where the C library is glibc; else does nothing.

    A training step on the CPU frees its activations, and the next one wants as much again. glibc gives large blocks
    back to the kernel and gets them anew, page by page and filled with zeros: a fifth of a convolution step or more.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)  # no block of its own for a large one: those are always given back
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes free at the heap's end
