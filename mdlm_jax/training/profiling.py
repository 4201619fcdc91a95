"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path

import jax


class Profile:
    """A context manager that traces the steps first..last of a run into ``<workdir>/profile``; None: does nothing."""

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        self._directory, self._steps, self._running = workdir / "profile", steps, False

    def before(self, step: int) -> None:
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results) -> None:
        if self._running and self._steps and step >= self._steps[1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception) -> None:
        if self._running:
            self._stop()
