"""Batches made ahead in a background thread."""

import threading
import time

import numpy as np
import pytest

from mdlm_jax.data.pipeline import Pipeline
from mdlm_jax.data.prefetch import prefetch
from mdlm_jax.data.tokenizers import LanguageTokenizer


def pipeline(cls=Pipeline):
    rows = np.repeat(np.arange(20)[:, None], 4, axis=1)
    return cls(rows, batch_size=8, seed=0, packing="concat", tokenizer=LanguageTokenizer(100))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def reach(made, count):
    deadline = time.monotonic() + 30
    while len(made) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("rows", [None, slice(2, 5)])
def test_steps_come_in_order_with_their_batches(depth, rows):
    source = pipeline()
    with prefetch(source, 7, rows, depth) as batches:
        for expected in range(7, 17):
            step, batch = next(batches)
            assert step == expected
            np.testing.assert_array_equal(batch["tokens"], source.batch(step, rows)["tokens"])


def test_closing_ends_the_thread_and_the_iteration():
    batches = prefetch(pipeline(), 0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    batches.close()
    assert not threads()
    assert list(batches) == []


def test_leaving_the_block_by_an_error_closes_too():
    with pytest.raises(KeyError, match="mine"), prefetch(pipeline(), 0) as batches:
        next(batches)
        raise KeyError("mine")
    assert not threads()


def test_an_error_of_the_thread_is_raised_once_at_its_step():
    class Failing(Pipeline):
        def batch(self, step, rows=None):
            if step == 3:
                raise OSError("the disk is gone")
            return super().batch(step, rows)

    batches = prefetch(pipeline(Failing), 0, depth=4)
    assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert list(batches) == []
    assert not threads()


def test_making_overlaps_with_using():
    made = []

    class Slow(Pipeline):
        def batch(self, step, rows=None):
            time.sleep(0.3)
            made.append(step)
            return super().batch(step, rows)

    with prefetch(pipeline(Slow), 0, depth=2) as batches:
        next(batches)
        reach(made, 3)  # the consumer is busy while the next two are made
        time.sleep(0.1)
        before = time.perf_counter()
        next(batches)
        next(batches)
        assert time.perf_counter() - before < 0.15


def test_no_more_than_depth_batches_are_made_ahead():
    made = []

    class Counting(Pipeline):
        def batch(self, step, rows=None):
            made.append(step)
            return super().batch(step, rows)

    with prefetch(pipeline(Counting), 0, depth=3) as batches:
        for _ in range(2):
            next(batches)
        reach(made, 5)
        time.sleep(0.1)
        assert made == [0, 1, 2, 3, 4]


def test_waiting_is_measured():
    class Slow(Pipeline):
        def batch(self, step, rows=None):
            time.sleep(0.1)
            return super().batch(step, rows)

    with prefetch(pipeline(Slow), 0, depth=1) as batches:
        assert batches.mean_wait() == 0.0
        for _ in range(3):
            next(batches)
        assert 0.25 < batches.waited < 1.0 and 0.05 < batches.last_wait < 0.5
        assert batches.mean_wait() == pytest.approx(batches.waited / 3)
        before = batches.waited
        time.sleep(0.3)  # the next batch is made meanwhile
        next(batches)
        assert batches.mean_wait() == pytest.approx(batches.waited - before, abs=1e-9)
        assert batches.last_wait < 0.05


@pytest.mark.parametrize("count", [2, 4])
def test_several_threads_keep_the_order(count):
    class Uneven(Pipeline):
        def batch(self, step, rows=None):
            time.sleep(0.02 * (step % 3 == 0))
            return super().batch(step, rows)

    source = pipeline()
    with prefetch(pipeline(Uneven), 5, depth=6, threads=count) as batches:
        for expected in range(5, 25):
            step, batch = next(batches)
            assert step == expected
            np.testing.assert_array_equal(batch["tokens"], source.batch(step)["tokens"])
    assert not threads()


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="threads=0"):
        prefetch(pipeline(), 0, threads=0)
    with pytest.raises(ValueError, match="depth=0"):
        prefetch(pipeline(), 0, depth=0)
