"""Guided and truncated sampling: against a twin that guides logits, and against p(x | prompt)^(1 + w) / p(x)^w."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.guidance import guide
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from tests.core.support import assert_law
from tests.marks import slow_unless

VOCAB, MASK, LENGTH = 7, 6, 9
PROMPT = np.array([3, 1], np.int32)
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))
PROCESSES = [Process(VOCAB, MASK), Process(VOCAB, MASK, 0.3)]


def denoise(params, tokens, time):
    """Logits from the token, its left neighbour and the time."""
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1) + time[:, None, None] * params[0])


def split(params, tokens, time):
    """The same logits from hidden states, as a network gives them."""
    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((VOCAB, VOCAB), np.float32))
    hidden = denoise(params, tokens, time).hidden @ jnp.linalg.inv(kernel)
    return Prediction(hidden, Head(kernel, 0.1 * jnp.arange(VOCAB, dtype=jnp.float32)))


def guided(params, tokens, time):
    """The twin: guidance of strength 1.5 on the logits, outside the decoder."""
    blind = tokens.at[:, : len(PROMPT)].set(MASK)
    seen, unseen = denoise(params, tokens, time), denoise(params, blind, time)
    return Prediction.from_logits(guide(seen.logits(), unseen.logits(), 1.5))


def split_guided(params, tokens, time):
    blind = tokens.at[:, : len(PROMPT)].set(MASK)
    seen, unseen = split(params, tokens, time), split(params, blind, time)
    return Prediction.from_logits(guide(seen.logits(), unseen.logits(), 1.5))


def run(function, decoder, steps=5, rows=6, **options):
    return decode(function, PARAMS, blank(MASK, rows, LENGTH, PROMPT), decoder, steps=steps, seed=5, **options)


@pytest.mark.parametrize("process", slow_unless(PROCESSES, "mixed", ids=["masked", "mixed"]))
def test_the_decoder_guides_as_its_twin(process):
    found = run(denoise, Ancestral(process), trace=True, guidance=1.5)
    expected = run(guided, Ancestral(process), trace=True)
    np.testing.assert_array_equal(found.trace, expected.trace)
    assert (found.calls, expected.calls) == (10, 5) and set(map(int, found.forwards)) <= {2, 4, 6, 8, 10}
    assert (np.asarray(run(denoise, Ancestral(process)).tokens) != np.asarray(found.tokens)).any()


def test_guided_hidden_states_give_guided_logits():
    found = run(split, Ancestral(PROCESSES[0], temperature=0.0), guidance=1.5)
    expected = run(split_guided, Ancestral(PROCESSES[0], temperature=0.0))
    np.testing.assert_array_equal(np.asarray(found.tokens), np.asarray(expected.tokens))


def test_the_law_is_the_ratio_of_powers():
    """One step from all masks: the token after the prompt, in 20 000 rows."""
    tokens = np.asarray(run(denoise, Ancestral(PROCESSES[0]), steps=1, rows=20_000, guidance=0.7).tokens)
    canvas = np.array([[*PROMPT, *[MASK] * (LENGTH - 2)], [MASK] * LENGTH], np.int32)
    logits = np.array(denoise(PARAMS, jnp.asarray(canvas), jnp.ones(2)).logits()[:, 2], np.float64)
    logits[:, MASK] = -np.inf
    with_prompt, without = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    law = np.zeros(VOCAB)
    law[:MASK] = with_prompt[:MASK] ** 1.7 / without[:MASK] ** 0.7
    assert_law(tokens[:, 2], law / law.sum())


def test_top_k_draws_from_the_likeliest():
    greedy = np.asarray(run(denoise, Ancestral(PROCESSES[0], temperature=0.0), steps=1).tokens)
    np.testing.assert_array_equal(np.asarray(run(denoise, Ancestral(PROCESSES[0], top_k=1), steps=1).tokens), greedy)
    drawn = np.asarray(run(denoise, Ancestral(PROCESSES[0], top_k=2), steps=1, rows=500).tokens)
    assert [len(np.unique(column)) for column in drawn.T] == [1, 1] + [2] * (LENGTH - 2)


def test_guidance_that_cannot_be():
    with pytest.raises(ValueError, match="guidance=0.5: guides towards a prompt, and the canvas has none"):
        decode(denoise, PARAMS, blank(MASK, 1, 4), Ancestral(PROCESSES[0]), steps=1, guidance=0.5)
    for process in (Process(VOCAB, MASK, 1.0), Process(VOCAB, None, 1.0)):
        with pytest.raises(ValueError, match="the process has no masks"):
            decode(denoise, PARAMS, blank(MASK, 1, 4, PROMPT), Ancestral(process), steps=1, guidance=0.5)
