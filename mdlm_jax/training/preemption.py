"""Being asked to stop: SIGTERM, which preemption notices of clouds and job managers become."""

import signal
import threading

import jax

from mdlm_jax.errors import Preempted


class Preemption:
    """A context manager around a training loop; ``reached`` says when to save and leave.

    In one process it is a signal handler. In a job that jax.distributed has joined, SIGTERM may reach one process
    alone: jax's preemption service then has all processes agree on a step, if each asks after every step.

    Raises:
      Preempted: at its end, where the signal came after the last step was asked about.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._together = jax.distributed.is_initialized()
        self._previous = None

    def __enter__(self) -> "Preemption":
        if not self._together and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        return self

    def __exit__(self, kind, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            if kind is None and self._asked.is_set():
                raise Preempted("asked to stop after the last step; the training is done and saved, and the same "
                                "command goes on with what follows it")

    def reached(self, step: int) -> bool:
        """Whether to stop after ``step``: the same answer in every process."""
        if self._together:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
