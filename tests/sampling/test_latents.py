"""Networks that read a latent in the loop: one a row and step, from the row's own key, and the law that comes of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.evaluation.mixture import one_step_log_prob
from mdlm_jax.evaluation.scoring import forced_log_prob, sampled_tv
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser, _OnWholeCanvas
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.free_dave import FreeDave
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.marks import slow_unless

FINE, ID = 1000, 1000  # tokens that tell a latent to three places; the mask
V, MASK, L = 3, 3, 3
NETWORK = TransformerConfig(V + 1, V + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=16, latent=6)
MODEL = Denoiser(NETWORK)
PARAMS = jax.tree.map(lambda x: 0.7 * jax.random.normal(jax.random.key(x.size), x.shape),
                      api.init(NETWORK, jax.random.key(0)))
EVERY = np.array(list(itertools.product(range(V), repeat=L)), np.int32)


@dataclasses.dataclass(frozen=True)
class Told(_OnWholeCanvas):
    """Every position is the latent, in thousandths."""

    latent = True
    timed = False

    def run(self, params, call, cache=None):
        token = (call.latent * FINE).astype(jnp.int32)[:, None]
        logits = jax.nn.one_hot(jnp.broadcast_to(token, call.tokens.shape), FINE + 1) * 50.0
        return Prediction.from_logits(logits), None


def latents(rows=4, steps=3, seed=0, on=None):
    """[B, 6] latents in thousandths by position, and the step at which each was written."""
    run = decode(Told(), {}, blank(ID, rows, 6) if on is None else on, LowConfidence(ID, temperature=0.0), steps=steps,
                 seed=seed)
    return np.asarray(run.tokens), np.asarray(run.order)


def test_each_row_and_step_has_its_own():
    tokens, order = latents()
    by_step = [[{*row[when == step]} for step in range(3)] for row, when in zip(tokens, order, strict=True)]
    assert all(len(found) == 1 for row in by_step for found in row)
    assert len({value for row in by_step for found in row for value in found}) == 12


def test_a_row_is_the_same_in_another_batch_and_another_with_another_seed():
    tokens, _ = latents()
    some = jax.tree.map(lambda x: x[jnp.array([2, 0])], blank(ID, 4, 6))
    np.testing.assert_array_equal(latents(on=some)[0], tokens[[2, 0]])
    assert (latents(seed=1)[0] != tokens).all()


def test_latents_are_uniform():
    tokens, _ = latents(rows=2000, steps=1)
    np.testing.assert_allclose(np.quantile(tokens[:, 0], [0.1, 0.5, 0.9]), [100, 500, 900], atol=40)


def law(**options):
    return np.exp(one_step_log_prob(MODEL, PARAMS, blank(MASK, 1, L), EVERY, mask_id=MASK, **options))


def test_the_law_of_one_step_adds_up_to_one_and_is_the_mean_of_products():
    found = law(latents=7, batch=3)
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    each = []
    for latent in (np.arange(7) + 0.5) / 7:
        logits = np.array(api.apply(NETWORK, PARAMS, jnp.full((1, L), MASK), latent=jnp.array([latent])).logits()[0])
        logits[:, MASK] = -np.inf
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        each.append(p[np.arange(L), EVERY].prod(1))
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4)
    never = law(latents=7, bias=jnp.array([-jnp.inf, 0, 0, 0]))
    assert never.sum() == pytest.approx(1.0, abs=1e-5) and (never[(EVERY == 0).any(1)] == 0).all()


def test_rows_written_in_one_step_have_that_law():
    run = decode(MODEL, PARAMS, blank(MASK, 8192, L), Ancestral(Process(V + 1, MASK)), steps=1, seed=3)
    distance, chance = sampled_tv(np.asarray(run.tokens), EVERY, law())
    assert distance < 1.5 * chance
    other = np.asarray(law(latents=1))  # of one latent: that a product would be told from it
    assert sampled_tv(np.asarray(run.tokens), EVERY, other / other.sum())[0] > 3 * chance


def test_behind_a_prompt_the_law_is_of_what_is_written():
    given = canvas(np.array([[1, MASK, MASK]], np.int32), np.array([[False, True, True]]))
    rows = EVERY[EVERY[:, 0] == 1]
    found = np.exp(one_step_log_prob(MODEL, PARAMS, given, rows, mask_id=MASK, latents=16))
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="must equal the canvas"):
        one_step_log_prob(MODEL, PARAMS, given, EVERY, mask_id=MASK)


@pytest.mark.parametrize("cache", slow_unless(["prefix", "dual"], "dual"))
def test_beside_a_cache_every_mask_is_written(cache):
    network = dataclasses.replace(NETWORK, layers=2)
    params = api.init(network, jax.random.key(1))
    run = decode(Denoiser(network), params, blank(MASK, 2, 8), LowConfidence(MASK), steps=4, block_length=4,
                 cache=cache)
    assert (np.asarray(run.tokens) != MASK).all()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: forced_log_prob(MODEL, PARAMS, blank(MASK, 27, L), EVERY, Adjust(mask_id=MASK, tokens=1), steps=None),
     "forced: the network reads a latent that each step draws"),
    (lambda: decode(MODEL, PARAMS, blank(MASK, 2, L), Ancestral(Process(V + 1, MASK), reuse=True), steps=2),
     "leaves forwards out where no token changed, and the network reads a latent"),
    (lambda: decode(MODEL, PARAMS, blank(MASK, 2, L), FreeDave(MASK), steps=3),
     "FreeDave: asks twice about the same row, and the network reads a latent"),
    (lambda: one_step_log_prob(Denoiser(dataclasses.replace(NETWORK, latent=0)), PARAMS, blank(MASK, 1, L), EVERY,
                               mask_id=MASK), "reads no latent"),
    (lambda: one_step_log_prob(MODEL, PARAMS, blank(MASK, 2, L), EVERY, mask_id=MASK), r"canvas \[2, 3\]"),
    (lambda: law(latents=0), "latents=0"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
