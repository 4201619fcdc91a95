"""Memory: keeping what was freed, and what to say when there is not enough."""

import contextlib
import ctypes
import sys

from mdlm_jax.config import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc never to return memory to the kernel. Does nothing on other systems.

    XLA:CPU takes the scratch space of a step from malloc and frees it after the step. glibc returns blocks of that size
    to the kernel, so every step would fault all its pages in again, a quarter of a CPU run's time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


@contextlib.contextmanager
def enough_memory(remedy: str):
    """Turns running out of memory, on the host or on a device, into a ConfigError that names the remedy.

    Every other exception passes.
    """
    try:
        yield
    except Exception as error:
        if not _is_shortage(error):
            raise
        text = str(error) or "the host has no more"
        raise ConfigError(f"out of memory: {remedy} ({text.splitlines()[0][:160]})") from error


def _is_shortage(error: Exception) -> bool:
    import jax

    on_device = isinstance(error, jax.errors.JaxRuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
    return on_device or isinstance(error, MemoryError)
