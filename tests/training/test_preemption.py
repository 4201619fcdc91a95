"""SIGTERM to this very process, inside and after the loop."""

import os
import signal

import pytest

from mdlm_jax.errors import Preempted
from mdlm_jax.training.preemption import Preemption


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_loop_is_told_at_the_step():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="saved step 3"), Preemption() as preemption:
        assert not preemption.reached(2)
        ask()
        assert preemption.reached(3)
        raise Preempted("saved step 3")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_after_the_last_step_is_not_swallowed():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="asked to stop after the last step; the training is done and saved"):
        with Preemption() as preemption:
            assert not preemption.reached(1)
            ask()  # while the last evaluation or checkpoint is under way
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_the_loop_comes_first():
    with pytest.raises(OSError, match="disk"), Preemption():
        ask()
        raise OSError("disk")


def test_nothing_asked():
    with Preemption() as preemption:
        assert not preemption.reached(1)
