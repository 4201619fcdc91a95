"""Keeps freed memory in the process, which spares a CPU run a quarter of its time.

XLA:CPU takes the scratch space of a step from malloc and frees it after the step. glibc returns blocks of that size to
the kernel, so every step would fault all its pages in again.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc never to return memory to the kernel. Does nothing on other systems."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
