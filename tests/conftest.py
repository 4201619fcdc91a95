"""Eight virtual CPU devices and a persistent compile cache for the whole suite."""

import gc
import importlib.metadata
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles thousands of small programs: the compiler's optimizer costs more than it saves, and so do its newer
# emitters of fusions, three times as much as the older ones, and the splitting of a program over threads. XLA ends the
# process over a flag that it does not know: jaxlib 0.12 has the newer emitters alone.
_flags = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags]).strip()
_cache = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"mdlm_jax-compile-cache-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
    parser.addoption("--errors", metavar="DIR", help="where to write what errors tests provoke, for tests/errors")


def pytest_configure(config):
    if config.getoption("--errors"):
        from tests.errors.recorder import Recorder

        Recorder(Path(config.getoption("--errors"))).install()


_MANY = 20_000  # memory maps; Linux allows a process 65,530, and every compiled program takes some


@pytest.fixture(autouse=True)
def compiled_programs_do_not_pile_up():
    """A worker that has compiled thousands of programs aborts when the kernel gives it no more maps."""
    begin = time.perf_counter()
    yield
    if sys.platform == "linux" and time.perf_counter() - begin > 1.0 and _maps() > _MANY:  # counting them takes a while
        jax.clear_caches()
        gc.collect()


def _maps() -> int:
    with open("/proc/self/maps", "rb") as file:
        return file.read().count(b"\n")
