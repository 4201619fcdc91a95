"""Exact scores on an enumerable law: they sum to one, are the frequencies of samples, and give the true KL."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.evaluation import scoring
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.decoder import Move, decoder
from mdlm_jax.sampling.dream import Dream
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.margin import Margin
from tests.core.support import assert_law
from tests.core.toy import MASK, MASKED, SIZE, Toy
from tests.marks import slow_unless
from tests.sampling import registry

LENGTH = 3
TOY = Toy(MASKED, LENGTH)
CODE = SIZE ** np.arange(LENGTH)[::-1]
FINISHED = TOY.states[(TOY.states != MASK).all(1)]  # 27 rows
JOINT = TOY.joint[(TOY.states != MASK).all(1)]
TABLE = jnp.asarray(np.log(TOY.denoiser(0.5) + 1e-30), jnp.float32)  # of the masked process, the same at all times
BLANK = blank(MASK, len(FINISHED), LENGTH)


def exact(table, tokens, time):
    """The law of each token given those that are not masked."""
    del time
    return Prediction.from_logits(table[tokens @ jnp.asarray(CODE)])


@decoder
class AtOnce(LowConfidence):
    """Writes all it may."""

    scorable = True

    def update(self, prediction, look, state):
        drawn = self.draw(prediction, look, ("sample",), where=look.masked)
        return Move(look.masked, drawn.sample, log_prob=drawn.law_log_prob), None


Surest = functools.partial(LowConfidence, remasking="top")


def score(rule, steps, rows=FINISHED, start=BLANK, **options):
    return scoring.forced_log_prob(exact, TABLE, start, rows, rule, steps=steps, **options)


def case_of(name, steps):
    case = registry.CASES[name]
    rule, block = case.make(SIZE, MASK), {"block_length": LENGTH} if "block_length" in case.options else {}
    return rule, case.options | block, steps if rule.reads_steps else None


def _surest(probs, rank):
    """The numpy twin's order: of one position's law [V]."""
    ordered = np.sort(probs)[::-1]
    return ordered[0] if rank == "top" else ordered[0] - ordered[1]


def _law_of_quota(rank, steps, temperature=1.0):
    """[27]: q by enumeration in numpy, the surest first and of equal ones the leftmost, remainders first."""
    tables, found = np.exp(np.asarray(TABLE, np.float64)), []
    for row in FINISHED:
        state, q = np.full(LENGTH, MASK), 1.0
        for step in range(steps):
            quota = LENGTH // steps + (step < LENGTH % steps)
            laws = np.where(np.arange(SIZE) == MASK, 0.0, tables[state @ CODE])
            laws = laws / laws.sum(-1, keepdims=True)
            order = sorted(np.flatnonzero(state == MASK), key=lambda i, laws=laws: (-_surest(laws[i], rank), i))
            tempered = laws ** (1 / temperature) / (laws ** (1 / temperature)).sum(-1, keepdims=True)
            for place in order[:quota]:
                q *= tempered[place, row[place]]
            state[order[:quota]] = row[order[:quota]]
        found.append(q)
    return np.asarray(found)


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(registry.scorable(), "low_confidence_top", "threshold", "factor",
                                             "entropy_bound_confidence", "klass", "dream_entropy", "adjust"))
def test_scores_sum_to_one(name):
    for steps in range(1, LENGTH + 1):
        rule, options, steps = case_of(name, steps)
        np.testing.assert_allclose(np.exp(score(rule, steps, **options)).sum(), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", slow_unless(registry.scorable(), "low_confidence_top"))
def test_scores_are_the_frequencies_of_samples(name):
    rule, options, steps = case_of(name, 2)
    q = np.exp(score(rule, steps, **options))
    many = decode(exact, TABLE, blank(MASK, 20_000, LENGTH), rule, steps=steps, seed=3, **options)
    law = np.zeros(SIZE**LENGTH)
    law[FINISHED @ CODE] = np.where(q < 1e-12, 0.0, q)
    assert_law(np.asarray(many.tokens) @ CODE, law)


_OTHER_LAWS = ("dream", "copula", "maria")  # another temperature, another network's law joined with it


@pytest.mark.parametrize("name", [name for name in registry.scorable() if not name.startswith(_OTHER_LAWS)])
def test_one_token_a_step_with_the_exact_denoiser_is_the_joint(name):
    """By the chain rule, in whatever order; so KL and total variation to it are none."""
    rule, options, steps = case_of(name, LENGTH)
    np.testing.assert_allclose(np.exp(score(rule.one_by_one(), steps, **options)), JOINT, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("rank", ["top", "margin"])
def test_scores_are_those_of_a_numpy_twin(rank, steps):
    for temperature in (1.0, 0.5):
        rule = Margin(MASK, temperature) if rank == "margin" else Surest(MASK, temperature)
        np.testing.assert_allclose(np.exp(score(rule, steps)), _law_of_quota(rank, steps, temperature), atol=1e-5)


def test_distances_are_the_enumerated_ones():
    """KL and TV from 20 000 rows of the joint, in standard errors; steps 1: all positions independent."""
    pick = np.random.default_rng(0).choice(len(FINISHED), 20_000, p=JOINT)
    for steps in (1, 2):
        q = _law_of_quota("top", steps)
        log_q = score(Surest(MASK, temperature=1.0), steps)
        found = scoring.distance(np.log(JOINT)[pick], log_q[pick])
        kl, tv = (JOINT * np.log(JOINT / q)).sum(), np.maximum(JOINT - q, 0).sum()
        assert abs(found.kl - kl) < 4 * found.kl_stderr and abs(found.tv - tv) < 4 * found.tv_stderr
        assert 0 < found.kl_stderr < 0.02 and 0 < found.tv_stderr < 0.02 and kl > 0.05
        assert (found.rows, found.unreachable) == (20_000, 0)


def test_distance_to_the_models_own_joint():
    """The exact denoiser's own joint is the toy's, so the two ways agree; at one token a step there is no distance."""
    rule = Surest(MASK, temperature=1.0)
    own = functools.partial(scoring.to_own_joint, exact, TABLE, blank(MASK, 4000, LENGTH), rule, batch=2000)
    q = _law_of_quota("top", 1)
    found = own(steps=1, seed=1)
    assert abs(found.kl - (JOINT * np.log(JOINT / q)).sum()) < 4 * found.kl_stderr
    assert abs(found.tv - np.maximum(JOINT - q, 0).sum()) < 4 * found.tv_stderr
    same = own(steps=3, seed=1)
    assert same.kl == same.tv == 0.0 and same.rows == 4000


# Calls ----------------------------------------------------------------------------------------------------------------


def test_prompts_batches_and_steps():
    """log q of the rest given the prompt; batches of any size, the last one short, give the same."""
    rows = FINISHED[:7]
    start = canvas(np.where(np.arange(LENGTH) == 1, rows, MASK), np.broadcast_to(np.arange(LENGTH) != 1, rows.shape))
    rule = Surest(MASK, temperature=1.0)
    whole = score(rule, 2, rows, start)
    np.testing.assert_array_equal(score(rule, 2, rows, start, batch=3), whole)
    given = np.array([JOINT[FINISHED[:, 1] == row[1]].sum() for row in rows])
    np.testing.assert_allclose(np.exp(whole), JOINT[:7] / given, rtol=1e-4, atol=1e-7)


def test_rows_out_of_reach_have_no_probability():
    greedy = Surest(MASK, temperature=0.0)
    found = score(greedy, LENGTH)
    only = np.asarray(decode(exact, TABLE, blank(MASK, 1, LENGTH), greedy, steps=LENGTH).tokens)[0]
    np.testing.assert_array_equal(found, np.where((FINISHED == only).all(1), 0.0, -np.inf))
    apart = scoring.distance(np.log(JOINT), found)
    assert apart.kl == np.inf and apart.unreachable == len(FINISHED) - 1 and 0.5 < apart.tv < 1


def test_a_stopped_row_is_scored_up_to_its_stop():
    """Blocks of one token, 0 stops: q of (a, 0, 0) is p(a) p(0 | a), and rows that go on after it have none."""
    found = np.exp(score(Surest(MASK, temperature=1.0), LENGTH, block_length=1, stop_id=0))
    for row, q in zip(FINISHED, found, strict=True):
        stop = int(np.argmax(row == 0)) if (row == 0).any() else LENGTH - 1
        begun = JOINT[(FINISHED[:, : stop + 1] == row[: stop + 1]).all(1)].sum()
        np.testing.assert_allclose(q, begun if (row[stop + 1 :] == 0).all() else 0.0, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(registry.CASES) - set(registry.scorable())))
def test_decoders_without_a_path_are_refused(name):
    with pytest.raises(ValueError, match="chooses positions at random, or by what it drew"):
        scoring.check_scorable(registry.CASES[name].make(13, 11))
    assert scoring.check_scorable(Surest(MASK)) is None


@pytest.mark.parametrize(("call", "message"), [
    (lambda d: score(d, 1, TOY.states[:27]), "tokens: row 1 holds the mask, 1; give finished rows"),
    (lambda d: score(d, 1, FINISHED[:3]), r"tokens \[3, 3\]: must have the canvas's shape \[27, 3\]"),
    (lambda d: score(d, 1, start=dataclasses.replace(BLANK, editable=BLANK.editable.at[:, 0].set(False))),
     "tokens: row 0 must be the canvas's where that is not editable"),
    (lambda d: score(d, 0), "steps=0: must be at least 1"),
    (lambda d: score(d, 4, block_length=1), "steps=4: must be a multiple of the 3 blocks"),
    (lambda d: scoring.distance(np.zeros(2), np.zeros(3)), r"log_p \[2\], log_q \[3\]"),
    (lambda d: scoring.distance(np.array([0.0, -np.inf]), np.zeros(2)), "log_p: row 1 is -inf"),
    (lambda d: scoring.to_own_joint(exact, TABLE, BLANK, Dream(MASK), steps=1), "Dream: goes by times"),
    (lambda d: scoring.to_own_joint(exact, TABLE, BLANK, d, steps=1, reference=AtOnce(MASK, 1.0)),
     "reference: AtOnce wrote several tokens in one step"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Surest(MASK, temperature=1.0))


def test_total_variation_by_rows_alone_and_what_chance_makes_of_none():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(27)), rng.dirichlet(np.ones(27))
    rows = FINISHED[rng.choice(27, p=q, size=200_000)]
    assert scoring.sampled_tv(rows, FINISHED, p)[0] == pytest.approx(np.maximum(p - q, 0).sum(), abs=0.005)
    found = [scoring.sampled_tv(FINISHED[rng.choice(27, p=p, size=300)], FINISHED, p) for _ in range(400)]
    chance = np.array(found)[:, 0]
    assert found[0][1] == pytest.approx(chance.mean(), abs=4 * chance.std() / 20)
    outside = np.full((10, LENGTH), MASK)  # rows that p cannot give
    assert scoring.sampled_tv(outside, FINISHED, p)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("rows", "p", "message"), [
    (FINISHED[:0], JOINT, r"rows \[0, 3\]"), (FINISHED[:, :2], JOINT, r"rows \[27, 2\]"),
    (FINISHED, JOINT / 2, "adds up to 0.5"), (FINISHED, JOINT[:5], r"p \[5\]"),
])
def test_rows_and_laws_that_do_not_go_together(rows, p, message):
    with pytest.raises(ValueError, match=message):
        scoring.sampled_tv(rows, FINISHED, p)
