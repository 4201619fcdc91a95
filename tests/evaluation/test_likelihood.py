"""The held-out bound against exact values: a law over short rows, its exact denoiser, and everything enumerated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.evaluation import likelihood
from mdlm_jax.evaluation.likelihood import held_out_bound, held_out_rows, padded_batches
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import batch_sharding, make_mesh
from mdlm_jax.training.build import build_bound
from tests.core.toy import MASK, SIZE, Toy
from tests.marks import slow_unless
from tests.training import tiny

LENGTH = 3
TOY = Toy(Process(SIZE, MASK), LENGTH)
STATES, JOINT = TOY.states[TOY.joint > 0], TOY.joint[TOY.joint > 0]
ENTROPY = -(JOINT * np.log(JOINT)).sum()
NETWORK = TransformerConfig(SIZE, SIZE, 1, 16, 2, 2, 32, conditioning="time")


def process(mixing):
    return Process(SIZE, MASK, mixing, Linear(0.02))


def likelihoods(mixing, t):
    """[B, clean id, noisy id] of one position."""
    masses = process(mixing).masses(t)
    kept = masses.keep[..., None] * jnp.eye(SIZE) + masses.uniform[..., None] / SIZE
    return kept + masses.mask[..., None] * (jnp.arange(SIZE) == MASK)


def exact_network(mixing, blur):
    """The law of each clean token given the others' noisy values, as a stand-in for `api.apply`."""

    def apply(network, params, tokens, *, time, **options):
        tables = jnp.log(jnp.maximum(likelihoods(mixing, time), 1e-30))
        each = tables[jnp.arange(len(tokens))[:, None, None], STATES[None], tokens[:, None, :]]  # [B, state, L]
        weights = jax.nn.softmax(jnp.log(JOINT)[:, None] + each.sum(-1, keepdims=True) - each, axis=1)
        probs = jnp.einsum("bsl,slv->blv", weights, jax.nn.one_hot(STATES, SIZE))
        return Prediction.from_logits(jnp.log((1 - blur) * probs + blur / 3 + 1e-12))

    return apply


def rows(count, seed=0):
    """A batch of rows drawn from the joint law."""
    tokens = STATES[np.random.default_rng(seed).choice(len(JOINT), count, p=JOINT)].astype(np.int32)
    ones = np.ones(tokens.shape, np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape).copy()
    return {"tokens": tokens, "attention_mask": ones, "positions": positions, "noise_mask": ones == 1,
            "loss_mask": ones == 1}


@functools.cache
def bound(mixing, draws, blur):
    """One objective a case: the measurement is compiled for it, with the network that it then meets."""
    del blur
    return build_bound(tiny.run_config(eval={"draws": draws}), NETWORK, process(mixing), 1)


@pytest.fixture
def measure(monkeypatch):
    """``measure(batch, mixing=0, draws=4)`` as a training run does it, with the exact denoiser for a network."""

    def run(batch, mixing=0.0, draws=4, blur=0.0, seed=0, batch_rows=500, sharding=None):
        monkeypatch.setattr(api, "apply", exact_network(mixing, blur))
        objective = bound(mixing, draws, blur)
        ends = None if mixing == 0 else objective.end_terms
        return held_out_bound(objective.loss_at, {"network": {}}, padded_batches(batch, batch_rows),
                              lambda ids: np.where(ids == 3, 2, 1), draws=draws, seed=seed, end_terms=ends,
                              sharding=sharding)

    return run


# Exact values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", slow_unless([1, 2, 3, 4], 3, 4))
def test_the_count_bound_of_the_exact_denoiser_is_the_entropy(draws, measure):
    """For every number of draws; an odd one makes no pairs, and half-size heads must know."""
    found = measure(rows(4000), draws=draws)
    assert abs(found.nats_per_token - ENTROPY / LENGTH) < 4 * found.nats_stderr < 0.1
    assert found.terms == {"diffusion": pytest.approx(found.nats_per_token)}
    assert (found.rows, found.tokens) == (4000, 12000)


@pytest.mark.parametrize("mixing", slow_unless([0.3, 1.0], 0.3))
def test_the_three_terms_of_the_exact_denoiser_make_the_entropy(mixing, measure):
    """Diffusion + reconstruction + prior = entropy + KL(law of x_1 || pure noise): the reverse chain starts there."""
    found = measure(rows(6000), mixing)
    last = np.asarray(likelihoods(mixing, jnp.ones(1)))[0].astype(np.float64)
    noise = (last - np.eye(SIZE) * 0.02) / 0.98
    every = np.array(np.meshgrid(*[range(SIZE)] * LENGTH)).reshape(LENGTH, -1).T
    law = sum(p * np.prod(last[state, every], axis=1) for state, p in zip(STATES, JOINT, strict=True))
    start = np.prod(noise[STATES[:1], every], axis=1)
    used = law > 0
    gap = (law[used] * np.log(law[used] / start[used])).sum()
    assert 0 < gap < 0.05 * ENTROPY
    exact = (ENTROPY + gap) / LENGTH
    assert abs(found.nats_per_token - exact) < 4 * found.nats_stderr < 0.1
    assert set(found.terms) == {"diffusion", "reconstruction", "prior"}
    assert sum(found.terms.values()) == pytest.approx(found.nats_per_token)
    prior = np.mean([(last[x] * np.log(last[x] / np.maximum(noise[x], 1e-30)))[last[x] > 0].sum() for x in (0, 2, 3)])
    assert found.terms["prior"] == pytest.approx(prior, rel=1e-3)
    assert 0 < found.terms["reconstruction"] < 0.02 * found.nats_per_token


@pytest.mark.parametrize("mixing", slow_unless([0.0, 0.3], 0.3))
def test_a_worse_denoiser_is_charged_for_it(mixing, measure):
    found = measure(rows(4000), mixing, blur=0.6)
    assert found.nats_per_token > ENTROPY / LENGTH + 8 * found.nats_stderr


def test_the_standard_error_is_that_of_repeated_measurements(measure):
    """Sixty times 500 fresh rows."""
    found = [measure(rows(500, seed), seed=seed) for seed in range(60)]
    errors = [one.nats_stderr for one in found]
    assert np.std([one.nats_per_token for one in found], ddof=1) == pytest.approx(np.mean(errors), rel=0.3)


# Bookkeeping ----------------------------------------------------------------------------------------------------------


def test_bits_are_over_the_bytes_of_the_tokens_that_count(measure):
    batch = rows(300)
    batch["noise_mask"] = batch["loss_mask"] = np.arange(LENGTH) < np.arange(300)[:, None] % 4  # 0 to 3 tokens a row
    found = measure(batch)
    counted = batch["loss_mask"]
    size = int(np.where(batch["tokens"] == 3, 2, 1)[counted].sum())
    assert (found.tokens, found.rows, found.text_bytes) == (counted.sum(), 300, size)
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * found.tokens / size / math.log(2))
    assert found.bits_stderr == pytest.approx(found.nats_stderr * found.tokens / size / math.log(2))


def test_without_text_there_are_no_bits():
    assert math.isnan(likelihood.Bound(1.0, 0.1, {}, 10, 2, 0).bits_per_byte)


def test_filling_up_the_last_batch_counts_nothing(measure):
    whole, padded = measure(rows(64), batch_rows=64), measure(rows(64))
    assert (padded.tokens, padded.rows, padded.text_bytes) == (whole.tokens, whole.rows, whole.text_bytes)
    assert padded.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-5)  # the same draws for the same rows
    several = measure(rows(700))
    assert (several.tokens, several.rows) == (2100, 700)


@pytest.mark.parametrize("together", [1, 10])
def test_the_summary_is_a_ratio_of_sums_with_its_standard_error(together):
    """Against the spread over 400 sets of rows in which ``together`` neighbours, as in a document, are equally hard."""
    rng, means, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        counts = rng.integers(1, 20, 960)
        terms = {"one": np.repeat(rng.gamma(2, 1, 960 // together), together) * counts, "two": rng.random(960)}
        found = likelihood._summary(terms, counts, 7)
        assert found.nats_per_token == pytest.approx((terms["one"] + terms["two"]).sum() / counts.sum())
        assert found.terms["two"] == pytest.approx(terms["two"].sum() / counts.sum())
        means.append(found.nats_per_token)
        errors.append(found.nats_stderr)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


@pytest.mark.parametrize("mixing", slow_unless([0.0, 0.3], 0.3))
def test_eight_devices_measure_what_one_does(mixing, measure):
    whole = measure(rows(64), mixing, batch_rows=64)
    mesh = make_mesh({"replica": 2, "fsdp": 4, "tensor": 1})
    split = measure(rows(64), mixing, batch_rows=64, sharding=batch_sharding(mesh))
    assert split.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-5)
    assert split.terms == pytest.approx(whole.terms, rel=1e-4)


def test_measuring_again_does_not_compile_again(measure):
    measure(rows(1000))
    before = likelihood._measure._cache_size()
    measure(rows(700, 1), seed=1)
    assert likelihood._measure._cache_size() == before


class Numbered:
    """A pipeline whose row n holds the number n."""

    def __init__(self, num_rows):
        self.num_rows = num_rows

    def sequential(self, start, count):
        assert 0 <= start < start + count <= self.num_rows
        return {"tokens": np.arange(start, start + count)[:, None]}


@pytest.mark.parametrize(("there", "wanted"), [(10, 100), (100, 100), (1000, 100), (1000, 16), (1000, 7), (33, 32)])
def test_held_out_rows_are_different_ones_from_all_over_the_split(there, wanted):
    found = held_out_rows(Numbered(there), wanted)["tokens"][:, 0]
    assert len(found) == len(set(found.tolist())) == min(there, wanted)
    np.testing.assert_array_equal(likelihood.held_out_index(there, wanted), found)
    gaps = np.diff(found, prepend=-1, append=there)
    assert gaps.max() <= -(-there // min(there, wanted)) + 1  # evenly, from end to end
    pieces = functools.partial(padded_batches, {"tokens": found[:, None]})
    assert np.concatenate([piece["tokens"][:count] for piece, count in pieces(32)]).tolist() == found[:, None].tolist()
    assert all(len(piece["tokens"]) == 32 for piece, _ in pieces(32))
