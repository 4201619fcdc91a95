"""Tasks spread over processes that are started afresh, so that nothing of the parent but the context reaches them."""

import concurrent.futures
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mdlm_jax.config import ConfigError

_context: Any = None  # of a worker process; set once, as it starts


def run(task: Callable[[Any, Any], Any], context: Any, items: Sequence, workers: int) -> Iterator[Any]:
    """Yields ``task(context, item)`` for each item, in the order in which they end.

    Args:
      task: a function of a module, so that another process can import it.
      context: anything that can be pickled; each process gets it once.
      workers: processes; with 1 everything happens in this one.

    Raises:
      ConfigError: a process was killed, most likely for want of memory. Whatever a task raises is raised here.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            yield task(context, item)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _enter, (pickle.dumps(context),))
    try:
        for future in concurrent.futures.as_completed([pool.submit(_call, task, item) for item in items]):
            yield future.result()
    except BrokenProcessPool:
        raise ConfigError("--workers: one of them was killed, perhaps for want of memory; start again with fewer: "
                          "what is finished is kept") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _enter(context: bytes) -> None:
    global _context
    _context = pickle.loads(context)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A parent that is killed cannot stop its workers; they must not go on without it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(task: Callable[[Any, Any], Any], item: Any) -> Any:
    return task(_context, item)
