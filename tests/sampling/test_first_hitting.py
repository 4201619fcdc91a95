"""First hitting: the law of the tokens, the times, several tokens a call, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import CosineMask, Linear
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.loop import decode
from tests.core.support import assert_law, row_keys
from tests.core.toy import MASK, MASKED
from tests.marks import slow_unless
from tests.sampling import tabulated

PARALLEL = FirstHitting(MASKED, parallel=True)


def test_one_by_one_follows_the_true_law():
    """Chi-square of 30 000 rows against the joint itself: there is no grid, hence no error of one."""
    assert_law(tabulated.states(PARALLEL, steps=3), tabulated.TOY.joint)


@pytest.mark.parametrize("steps", [1, 2])
def test_several_a_call_follow_the_law_of_independent_draws(steps):
    law = np.eye(64)[tabulated.START]
    for quota in ([3], [2, 1])[steps - 1]:
        law = law @ tabulated.revealing(quota)
    assert np.abs(law - tabulated.TOY.joint).sum() > 0.05  # another law, so that the test can tell
    assert_law(tabulated.states(PARALLEL, steps), law)


def clock(schedule, tokens, time):
    """Draws 0 with probability t, else 2, and tells nothing else."""
    del schedule
    probs = jnp.stack([time, 0 * time, 1 - time, 0 * time], -1)
    return Prediction.from_logits(jnp.broadcast_to(jnp.log(probs)[:, None], (*tokens.shape, 4)))


@pytest.mark.parametrize("schedule", slow_unless([CosineMask(0.0), Linear(0.2, 0.1)], CosineMask(0.0)), ids=str)
def test_every_row_is_asked_at_its_own_time(schedule):
    """The network draws 0 with probability t: of the i-th token to come, the share of 0s is E[t of the i-th hit].

    1 - alpha at the hits: the order statistics of 1 - alpha(1) times three uniforms, the largest first. Exact to
    4.5 standard errors for one token a call; with all in one call the time is the first hit's.
    """
    process = Process(4, MASK, 0.0, schedule)
    one = decode(clock, None, blank(MASK, tabulated.ROWS, 3), FirstHitting(process, parallel=True), steps=3)
    levels = (np.arange(200_000) + 0.5) / 200_000
    times = np.asarray(schedule.inverse_complement(jnp.asarray(levels * schedule.complement(1.0), jnp.float32)))
    tokens, order = np.asarray(one.tokens), np.asarray(one.order)
    means = [(stats.beta(3 - i, 1 + i).pdf(levels) * times).mean() for i in range(3)]
    for i, mean in enumerate(means):
        share = (tokens[order == i] == 0).mean()
        assert abs(share - mean) < 4.5 * np.sqrt(mean * (1 - mean) / tabulated.ROWS), (i, share, mean)
    both = decode(clock, None, blank(MASK, tabulated.ROWS, 3), FirstHitting(process, parallel=True), steps=1)
    assert abs((np.asarray(both.tokens) == 0).mean() - means[0]) < 4.5 * np.sqrt(1 / tabulated.ROWS)


VOCAB, ID, LENGTH = 11, 10, 12
PROCESS = Process(VOCAB, ID)
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))


def around(params, tokens, time):
    """Logits from the token, its neighbours and the time."""
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1) + time[:, None, None] * params[0])


def prompts() -> np.ndarray:
    """Rows with 9, 1 and 5 masks, one of them with a token beyond."""
    tokens = np.full((3, LENGTH), ID, np.int32)
    tokens[:, :3], tokens[1, 3:11], tokens[2, 8:] = [3, 1, 4], 5, 6
    return tokens


def test_one_forward_a_token_and_the_prompt_stays():
    tokens = prompts()
    found = decode(around, PARAMS, canvas(tokens, tokens == ID), FirstHitting(PROCESS), steps=20)
    np.testing.assert_array_equal(found.forwards, [9, 1, 5])
    assert found.calls == 9
    result, order = np.asarray(found.tokens), np.asarray(found.order)
    np.testing.assert_array_equal(result[tokens != ID], tokens[tokens != ID])
    assert (result != ID).all()
    for row, count in enumerate((9, 1, 5)):
        np.testing.assert_array_equal(np.sort(order[row][order[row] >= 0]), np.arange(count))


@pytest.mark.slow
def test_parallel_with_enough_steps_is_one_by_one():
    tokens = prompts()
    results = [decode(around, PARAMS, canvas(tokens, tokens == ID), FirstHitting(PROCESS, parallel=parallel),
                      steps=steps).tokens for parallel, steps in ((False, 20), (True, 9))]
    np.testing.assert_array_equal(*results)


def test_the_head_is_applied_to_one_position_a_row():
    """By counting the rows of the largest product in the compiled draw."""
    kernel = jnp.zeros((8, 700))

    def drawn(hidden, keys, where):
        return draws.draw(Prediction(hidden, Head(kernel)), keys, suppress=3, wants=("sample",), where=where, most=1)

    arguments = jnp.zeros((2, 64, 8)), row_keys(2, 0), jnp.zeros((2, 64), bool)
    text = jax.jit(drawn).lower(*arguments).as_text()
    assert "tensor<2x1x700xf32>" in text and "tensor<2x64x700xf32>" not in text


# Second order ---------------------------------------------------------------------------------------------------------


def test_extrapolated_draws_follow_the_line_through_two_predictions():
    """Chi-square: max(0, p + w (p - q)) over its sum, for w = 0, 0.4 and 2 side by side."""
    rng = np.random.default_rng(2)
    now, before = (jnp.asarray(rng.normal(size=(3, 6)), jnp.float32) for _ in range(2))
    rows, weight = 20_000, np.array([0.0, 0.4, 2.0])
    many = [jnp.broadcast_to(x, (rows, 3, 6)) for x in (now, before)]
    found = draws.draw(Prediction.from_logits(many[0]), row_keys(rows, 3), suppress=5, wants=("sample",),
                       extrapolate=(many[1], jnp.broadcast_to(jnp.asarray(weight, jnp.float32), (rows, 3))))
    p, q = (np.exp(np.asarray(x, np.float64)) * (np.arange(6) != 5) for x in (now, before))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    law = np.maximum(0, p + weight[:, None] * (p - q))
    assert (law[2] == 0).sum() > 1  # something is cut
    for place in range(3):
        assert_law(np.asarray(found.sample)[:, place], law[place] / law[place].sum())


def by_masks(params, tokens, time):
    """Draws 0 with a probability that the number of masks decides, else 2."""
    del time
    zero = jnp.broadcast_to(params[(tokens == MASK).sum(1)][:, None], tokens.shape)
    return Prediction.from_logits(jnp.log(jnp.stack([zero, 0 * zero, 1 - zero, 0 * zero], -1)))


def test_the_second_token_of_a_call_is_extrapolated():
    """Four tokens in two calls, p(0) = 0.2 at four masks and 0.5 at two: 0.5 and 0.5 + (0.5 - 0.2) / 2 in the second.

    Five, three of them in the first call: 0.5 and 0.5 + 0.4 / 3, from 0.1 at five.
    """
    zeros = jnp.asarray([0, 0, 0.5, 0, 0.2, 0.1], jnp.float32)
    ahead = FirstHitting(MASKED, parallel=True, second="extrapolate")
    tokens = np.full((tabulated.ROWS, 5), MASK, np.int32)
    tokens[: tabulated.ROWS // 2, 0] = 3  # four to be written
    found = decode(by_masks, zeros, canvas(tokens, tokens == MASK), ahead, steps=2)
    half = tabulated.ROWS // 2
    for rows, first, second in ((slice(half), 0.2, 0.575), (slice(half, None), 0.1, 0.5 + 0.2 / 3)):
        result, order = np.asarray(found.tokens)[rows], np.asarray(found.order)[rows]
        for step, mean in enumerate((first, second)):
            share = (result[order == step] == 0).mean()
            assert abs(share - mean) < 4.5 * np.sqrt(mean * (1 - mean) / half), (step, share, mean)


def test_corrected_tokens_follow_their_law():
    """Quotas 2 and 1: the second of the pair is drawn again, with probability 1/2, in the call that draws the third.

    Both see the canvas of the pair. The toy's rows are the law of a token given the others, visible or not.
    """
    law, probs = np.zeros(64), tabulated.PROBS
    for first, second, third in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for a in range(4):
            for b in range(4):
                state = np.full(3, MASK)
                state[first], state[second] = a, b
                seen = probs[state @ tabulated.PLACES]
                pair = probs[tabulated.START, first, a] * probs[tabulated.START, second, b] / 6
                kept = 0.5 * (np.arange(4) == b) + 0.5 * seen[second]
                for c, d in np.ndindex(4, 4):
                    state[second], state[third] = c, d
                    law[state @ tabulated.PLACES] += pair * kept[c] * seen[third, d]
    assert abs(law.sum() - 1) < 1e-9
    assert_law(tabulated.states(dataclasses.replace(PARALLEL, second="correct"), steps=2), law)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FirstHitting(Process(4, 3, 0.1)), "mixing=0.1: masks alone are hit once"),
    (lambda: FirstHitting(PROCESS, parallel=True, second="heun"), "second='heun': choose one of none, extrapolate"),
    (lambda: FirstHitting(PROCESS, second="correct"), "second='correct': is for several tokens a call; set parallel"),
    (lambda: decode(around, PARAMS, blank(ID, 1, 6), FirstHitting(PROCESS), steps=5),
     "steps=5: one by one, the 6 tokens of a block take as many steps"),
    (lambda: FirstHitting(PROCESS, top_p=0.0), "top_p=0.0: must lie in"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
