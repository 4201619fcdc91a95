"""Path planning: the uniform planner is ancestral sampling, the self planner keeps its plan, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.p2 import P2
from tests.core.support import assert_law
from tests.core.toy import MASKED
from tests.sampling import tabulated
from tests.sampling.registry import Opinion

UNIFORM = P2(MASKED, planner="uniform")


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_uniform_planner_is_ancestral_in_law(steps):
    """Chi-square against the ancestral chain multiplied out, at few steps, where both are far from the true law."""
    law = tabulated.TOY.law(steps)
    assert_law(tabulated.states(UNIFORM, steps), np.where(law < 1e-12, 0.0, law))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
def test_even_kappa(steps):
    """Quotas 2 and 1, or 1, 1 and 1: the last is the true law."""
    law = np.eye(64)[tabulated.START]
    for quota in ([2, 1], [1, 1, 1])[steps - 2]:
        law = law @ tabulated.revealing(quota)
    assert_law(tabulated.states(P2(MASKED, planner="uniform", kappa="even"), steps), law)


VOCAB, ID, LENGTH = 11, 10, 12
PROCESS = Process(VOCAB, ID, 0.0, Linear(0.0))
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))


def around(params, tokens, time):
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1) + time[:, None, None] * params[0])


def prompted():
    tokens = np.full((4, LENGTH), ID, np.int32)
    tokens[:, :3], tokens[1, 6:], tokens[2, 9] = [3, 1, 4], 5, 7
    editable = tokens == ID
    editable[2, 9] = True  # a draft: it may be masked and drawn again
    return canvas(tokens, editable)


def probabilities(tokens):
    logits = np.array(around(PARAMS, jnp.asarray(tokens), jnp.zeros(len(tokens))).hidden, np.float64)
    logits[..., ID] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def timeless(params, tokens, time):
    return around(params, tokens, 0 * time)


@pytest.mark.parametrize(("planner", "eta"), [("self", 0.0), ("self", 1.0), ("self", 2.0), ("trained", 1.0),
                                              ("trained", 2.0)])
def test_greedy_steps_are_those_of_numpy(planner, eta):
    """Temperature 0 and an even kappa leave nothing to chance: a plan of plain numpy, step by step."""
    opinion = Opinion("planner")
    given, steps = prompted(), 5
    tokens, editable = np.array(given.tokens), np.asarray(given.editable)
    decoder = P2(PROCESS, planner, eta=eta, kappa="even", temperature=0.0, quality=opinion)
    found = decode(timeless, PARAMS, given, decoder, steps=steps, trace=True)
    first = ((tokens == ID) & editable).sum(1)
    assert len(found.trace) == steps + 1
    for step in range(steps):
        np.testing.assert_array_equal(found.trace[step], tokens)
        probs = probabilities(tokens)
        full = np.where(tokens == ID, probs.argmax(-1), tokens)  # masks behind the prompt and given ones alike
        right = 1 / (1 + np.exp(-np.asarray(opinion.logits(jnp.asarray(full), positions=np.arange(LENGTH)))))
        for row in range(len(tokens)):
            masked = (tokens[row] == ID) & editable[row]
            if not masked.any():
                continue  # done: it stays as it is
            best, own = probs[row].argmax(-1), probs[row][np.arange(LENGTH), np.minimum(tokens[row], VOCAB - 1)]
            first_score, own = (probs[row].max(-1), own) if planner == "self" else (right[row], right[row])
            score = np.where(masked, max(eta, 1e-30) * first_score, own)
            shown = (editable[row] & ~masked).sum() + first[row] // steps + (step < first[row] % steps)
            plan = np.argsort(np.where(editable[row], -score, np.inf), kind="stable")[:shown]
            keep = np.isin(np.arange(LENGTH), plan)
            tokens[row] = np.where(keep & masked, best, np.where(editable[row] & ~keep & ~masked, ID, tokens[row]))
    np.testing.assert_array_equal(found.trace[-1], tokens)
    assert (tokens != ID).all()
    back = ((found.trace[:-1] != ID) & (found.trace[1:] == ID)).any()
    assert back == (eta > 0)


@pytest.mark.slow
def test_nothing_is_left_masked_and_the_prompt_stays():
    given = prompted()
    fixed = ~np.asarray(given.editable)
    for seed in range(5):
        for steps in (1, 2, 30):
            found = decode(timeless, PARAMS, given, P2(PROCESS), steps=steps, seed=seed)
            tokens = np.asarray(found.tokens)
            assert (tokens != ID).all() and found.calls <= steps
            np.testing.assert_array_equal(tokens[fixed], np.asarray(given.tokens)[fixed])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: P2(Process(4, 3, 0.1)), "mixing=0.1: path planning needs the masked process"),
    (lambda: P2(PROCESS, planner="bert"), "planner='bert': choose one of self, uniform, trained"),
    (lambda: P2(PROCESS, kappa="cosine"), "kappa='cosine': choose one of binomial, even"),
    (lambda: P2(PROCESS, eta=-1.0), "eta=-1.0: must not be negative"),
    (lambda: P2(PROCESS, planner="uniform", eta=2.0), "eta=2.0: the uniform planner has none"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_are_leaves():
    """Another eta or temperature does not compile again."""
    trees = [jax.tree.structure(P2(PROCESS, eta=eta, temperature=t)) for eta, t in ((1.0, 1.0), (0.5, 0.0))]
    assert trees[0] == trees[1]
