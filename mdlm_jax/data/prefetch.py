"""Batches made ahead in background threads, and how long the training waited for them."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator

from mdlm_jax.data.packing import Batch


class Prefetcher:
    """An iterator of (step, batch) whose batches are made ahead; see ``prefetch``.

    Attributes:
      waited: seconds that ``next`` has spent waiting, all steps together.
      last_wait: seconds of them in the newest ``next``.
    """

    def __init__(self, pipeline, start_step: int, rows: slice | None, depth: int, threads: int = 1):
        for name, value in (("depth", depth), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self._pipeline, self._rows, self._next_step = pipeline, rows, start_step
        self._executor = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._pending: collections.deque[tuple[int, concurrent.futures.Future]] = collections.deque()
        self._closed = False
        self.waited = self.last_wait = 0.0
        self._told = (0.0, start_step)
        self._reached = start_step
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        step, self._next_step = self._next_step, self._next_step + 1
        self._pending.append((step, self._executor.submit(self._pipeline.batch, step, self._rows)))

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._closed:
            raise StopIteration
        step, future = self._pending.popleft()
        begun = time.perf_counter()
        try:
            batch = future.result()
        except BaseException:
            self.close()
            raise
        self.last_wait = time.perf_counter() - begun
        self.waited += self.last_wait
        self._reached = step + 1
        self._submit()
        return step, batch

    def mean_wait(self) -> float:
        """Seconds waited per step since this was last asked (at first: since the start); 0.0 if there was no step."""
        (waited, reached), self._told = self._told, (self.waited, self._reached)
        return (self.waited - waited) / max(1, self._reached - reached)

    def close(self) -> None:
        """Ends the threads; unused batches are dropped. Iteration stops. Closing twice is fine."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def prefetch(pipeline, start_step: int, rows: slice | None = None, depth: int = 2, threads: int = 1) -> Prefetcher:
    """Endless (step, batch) from ``start_step`` on, ``depth`` batches ahead; use it in a ``with`` block.

    Batches come in the order of their steps, however many ``threads`` make them. An error of a background thread is
    raised again by ``next`` at its step, after which the iterator is closed.
    """
    return Prefetcher(pipeline, start_step, rows, depth, threads)
