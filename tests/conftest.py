"""Eight virtual CPU devices and a persistent compile cache for the whole suite."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles hundreds of small programs: the compiler's optimizer costs more than it saves.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
_cache = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"mdlm_jax-compile-cache-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
