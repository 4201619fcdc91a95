"""SDTT and Duo's distillation: their losses by enumeration and in plain numpy, whom they ask when, and what trains."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models import api, flops
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.base import Routers
from mdlm_jax.training.objectives.duo import DuoObjective
from mdlm_jax.training.objectives.sdtt import SDTTObjective
from tests.core.toy import MASK, MASKED
from tests.sampling.tabulated import LENGTH, PLACES, denoise
from tests.training import tiny

KEY = jax.random.key(0)
PLAIN = TransformerConfig(4, 4, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8)
TEXT = [i for i in range(4) if i != MASK]
CLEAN = np.array([0, 2, 3])


def table(seed):
    """[64, L, 4]: logits of a network that is right about nothing."""
    logits = 1.5 * np.random.default_rng(seed).standard_normal((64, LENGTH, 4))
    logits[..., MASK] = -np.inf
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


STUDENT, TEACHER = table(1), table(2)


class Tabulated:
    """Networks that are tables."""

    def taught(self, trainable, batch, noisy, time, key, rows):
        return denoise(trainable["teacher"], noisy, None)

    def run(self, trainable, batch, noisy, time, key, rows):
        return denoise(trainable["network"], noisy, None), Routers()


class SDTT(Tabulated, SDTTObjective):
    pass


class Duo(Tabulated, DuoObjective):
    pass


def kl(first, second):
    """[..., V] log-probabilities -> [...], nats."""
    never = np.isneginf(first)
    return (np.exp(first) * (np.where(never, 0.0, first) - np.where(never, 0.0, second))).sum(-1)


def number(tokens):
    return int(np.asarray(tokens) @ PLACES)


def subsets(places):
    return itertools.chain.from_iterable(itertools.combinations(places, n) for n in range(len(places) + 1))


def expected(steps, middle, forward):
    """The loss of a row in nats, over times, masks, what the first step reveals, and its draws. alpha(t) = 1 - t."""
    total = 0.0
    for n in range(1, steps // 2 + 1):
        t, end = 2 * n / steps, (2 * n - 2) / steps
        between = middle(t, end)
        reveal = min(max((t - between) / t, 0.0), 1.0)
        for masks in subsets(range(LENGTH)):
            noisy = np.where(np.isin(np.arange(LENGTH), masks), MASK, CLEAN)
            chance = t ** len(masks) * (1 - t) ** (LENGTH - len(masks)) / (steps // 2)
            for shown in subsets(masks):
                of_shown = reveal ** len(shown) * (1 - reveal) ** (len(masks) - len(shown))
                for drawn in itertools.product(TEXT, repeat=len(shown)):
                    then = noisy.copy()
                    then[list(shown)] = drawn
                    law = np.exp(sum(TEACHER[number(noisy), i, d] for i, d in zip(shown, drawn, strict=True)))
                    for i in masks:
                        target = TEACHER[number(noisy if i in shown else then), i]
                        pair = (STUDENT[number(noisy), i], target)
                        total += chance * of_shown * law * kl(*(pair[::-1] if forward else pair))
    return total


def sampled(objective, rows):
    """Mean and standard error of a row's loss."""
    true = jnp.ones((rows, LENGTH), bool)
    batch = {"tokens": jnp.tile(jnp.asarray(CLEAN, jnp.int32), (rows, 1)), "noise_mask": true, "loss_mask": true}
    weights = {"network": jnp.asarray(STUDENT, jnp.float32), "teacher": jnp.asarray(TEACHER, jnp.float32)}
    of_row = np.asarray(jax.jit(lambda w: objective.loss(w, batch, KEY, jnp.arange(rows), rows).per_row())(weights))
    return of_row.mean(), of_row.std() / rows**0.5


def published(t, s):
    """The middle of the reference's code: 1 - t for 1 - space."""
    return (t + s) / 2 + (0.5 - t) * s


@pytest.mark.parametrize("forward", [False, True])
def test_sdtt_is_the_sum_over_all_that_can_happen(forward):
    mean, error = sampled(SDTT(PLAIN, MASKED, steps=16, forward_kl=forward), 20_000)
    exact = expected(16, lambda t, s: (t + s) / 2, forward)
    assert abs(mean - exact) < 4 * error and error < 0.01 * exact
    assert abs(mean - expected(16, published, forward)) > 5 * error  # the published times are another loss


def test_what_the_published_times_do():
    """Near t = 1 the first step goes to one half whatever the steps, at small t it goes nowhere."""
    assert published(1.0, 1.0 - 2 / 1024) == pytest.approx(0.5)
    assert published(0.25, 0.25 - 2 / 64) > 0.25
    assert published(0.5, 0.25) == pytest.approx(0.375)


def test_duo_is_the_sum_over_all_that_can_happen():
    """t = min(u + 1/2, 1), so half of the rows are at t = 1; alpha(t) = 1 - t, and no id is the mask."""
    process = Process(4, None, 1.0, MASKED.schedule)
    objective, ids = Duo(PLAIN, process, steps=2), np.arange(4)
    mean, error = sampled(objective, 20_000)
    exact, places = 0.0, np.array(list(itertools.product(range(4), repeat=LENGTH)))
    times = [(1.0, 0.5, 0.5)] + [(0.5 + u, u, 0.5 / 200) for u in (np.arange(200) + 0.5) / 400]
    for t, s, chance in times:
        pair = np.zeros((LENGTH, 4, 4))  # P(x_t, x_s)
        for i, x in enumerate(CLEAN):
            pair[i, ids, ids] = s / 4  # noise at both times
            pair[i, ids, x] += (t - s) / 4
            pair[i, x, x] += 1 - t
        laws = np.einsum("ab,cd,ef->acebdf", *pair).reshape(64, 64)
        exact += chance * (laws * kl(STUDENT[:, None], TEACHER[None, :]).sum(-1)).sum()
    assert (places @ PLACES == np.arange(64)).all()
    assert abs(mean - exact) < 4 * error and error < 0.01 * exact


# With networks --------------------------------------------------------------------------------------------------------

NETWORK = dataclasses.replace(tiny.TIMED, condition_dim=16)
OBJECTIVES = {"sdtt": SDTTObjective(NETWORK, tiny.process(), steps=8),
              "duo": DuoObjective(NETWORK, tiny.process(1.0), steps=8)}


def weights(network=NETWORK):
    shapes = api.abstract(network)

    def one(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape, np.float32)), shapes)

    return {"network": one(0), "teacher": one(1)}


def log_probs(params, tokens, time, batch):
    found = api.apply(NETWORK, params, tokens, time=time, attention_mask=batch["attention_mask"],
                      positions=batch["positions"])
    logits = np.array(found.hidden @ found.head.weight if hasattr(found.head, "weight") else found.head(found.hidden),
                      np.float64)
    logits[..., tiny.MASK] = -np.inf
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_loss_is_a_plain_kl_of_what_each_is_asked(kind, forward, monkeypatch):
    """Records what the networks are given; their answers and the KL are made again in numpy."""
    objective = dataclasses.replace(OBJECTIVES[kind], forward_kl=forward)
    params, batch, rows, asked = weights(), tiny.batch(8), jnp.arange(8), []
    denoise_, run = type(objective).denoise, type(objective).run

    def taught(self, trainable, batch, noisy, time, *rest):
        asked.append((np.asarray(noisy), np.asarray(time)))
        return denoise_(self, trainable, batch, noisy, time, *rest)

    def runs(self, trainable, batch, noisy, time, *rest):
        assert trainable["network"] is params["network"] or "teacher" not in trainable
        asked.append((np.asarray(noisy), np.asarray(time)))
        return run(self, trainable, batch, noisy, time, *rest)

    monkeypatch.setattr(type(objective), "run", runs)
    monkeypatch.setattr(type(objective), "denoise", lambda self, *a: runs(self, *a)[0])
    parts = objective.loss(params, batch, KEY, rows, 8)
    *teachers, (noisy, t) = asked
    ours = log_probs(params["network"], noisy, t, batch)
    if kind == "sdtt":
        (first_row, first_time), (then, middle) = teachers
        np.testing.assert_array_equal(first_row, noisy)
        np.testing.assert_allclose(first_time, t)
        np.testing.assert_allclose(middle, t - 1 / 8, rtol=1e-6)
        masked = (noisy == tiny.MASK) & batch["noise_mask"]
        assert set(np.round(t * 4)) <= {1, 2, 3, 4} and len(set(t.tolist())) > 1
        revealed = masked & (then != tiny.MASK)
        assert revealed.any() and (masked & ~revealed).any()
        np.testing.assert_array_equal(then[~revealed], noisy[~revealed])
        target = np.where(revealed[..., None], log_probs(params["teacher"], noisy, t, batch),
                          log_probs(params["teacher"], then, middle, batch))
        counted = masked
    else:
        ((before, s),) = teachers
        np.testing.assert_allclose(s, np.maximum(t - 1 / 8, 0), atol=1e-6)
        tokens = batch["tokens"]
        assert ((before == tokens) | (before == noisy)).all() and (before != noisy).any()
        target, counted = log_probs(params["teacher"], before, s, batch), batch["loss_mask"]
    assert (noisy == batch["tokens"])[~batch["noise_mask"]].all()
    found = kl(target, ours) if forward else kl(ours, target)
    np.testing.assert_allclose(parts.terms[kind], np.where(counted, found, 0.0), rtol=2e-4, atol=2e-5)
    assert parts.totals().count == batch["loss_mask"].sum()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_teacher_has_no_gradient_and_no_dropout(kind):
    objective, params, batch, rows = OBJECTIVES[kind], weights(), tiny.batch(8), jnp.arange(8)
    dropped = dataclasses.replace(objective, network=dataclasses.replace(NETWORK, dropout=0.5))
    assert dropped.teacher.network == NETWORK and dropped.network.dropout == 0.5

    @jax.jit
    def both(params):
        return jax.value_and_grad(lambda w: objective.loss(w, batch, KEY, rows, 8).objective())(params)

    value, found = both(params)
    assert np.isfinite(value) and value > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["teacher"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))
    other = dropped.loss(params, batch, KEY, rows, 8).objective()
    assert abs(float(other) - float(value)) > 1e-3 * float(value)


def test_nothing_is_to_be_learned_where_context_says_nothing():
    """A teacher whose law is the same in every row, and a student that has it: the loss and its gradient are 0."""
    same = jnp.asarray(np.broadcast_to(TEACHER[:1], TEACHER.shape), jnp.float32)
    true = jnp.ones((64, LENGTH), bool)
    batch = {"tokens": jnp.tile(jnp.asarray(CLEAN, jnp.int32), (64, 1)), "noise_mask": true, "loss_mask": true}

    def loss(network):
        return SDTT(PLAIN, MASKED, steps=4).loss({"network": network, "teacher": same}, batch, KEY, jnp.arange(64),
                                                 64).objective()

    value, slope = jax.value_and_grad(loss)(same)
    assert abs(float(value)) < 1e-4 and np.abs(np.nan_to_num(np.asarray(slope))).max() < 1e-5


@pytest.mark.parametrize("steps", [2, 6, 10, 1024, 4098])
def test_sdtt_s_times_are_the_student_s_grid_each_alike(steps):
    objective = SDTTObjective(PLAIN, MASKED, steps=steps)
    ends = jnp.asarray([2.0**-24, 1 - 2.0**-24], jnp.float32)
    np.testing.assert_allclose(objective.times(ends)[0], [2 / steps, 1.0], rtol=1e-6)
    u = (jnp.arange(4 * steps) + 0.5) / (4 * steps)
    t, middle = objective.times(u)
    np.testing.assert_array_equal(np.bincount(np.round(np.asarray(t) * steps / 2).astype(int))[1:], 8)
    np.testing.assert_allclose(t - middle, 1 / steps, atol=1e-6)


def test_duo_s_times_have_an_atom_at_one():
    t, s = DuoObjective(PLAIN, Process(4, None, 1.0), steps=4).times((jnp.arange(1000) + 0.5) / 1000)
    assert (t == 1.0).sum() == 250 and s.min() >= 0
    np.testing.assert_allclose(t - s, 0.25, atol=1e-6)


def test_flops_are_those_of_the_network_and_forwards_of_the_teacher():
    tokens = 4 * tiny.LENGTH
    alone = flops.forward_flops(NETWORK, tokens, tiny.LENGTH, 0)
    whole = flops.forward_flops(NETWORK, tokens, tiny.LENGTH, tokens)
    for kind, forwards, heads in (("sdtt", 2, 3), ("duo", 1, 2)):
        assert OBJECTIVES[kind].train_flops(4, tiny.LENGTH) == 3 * whole + forwards * alone + heads * (whole - alone)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: SDTTObjective(PLAIN, MASKED, steps=3), "steps=3: must be even"),
    (lambda: SDTTObjective(PLAIN, MASKED, steps=0), "steps=0: must be at least 2"),
    (lambda: SDTTObjective(PLAIN, Process(4, 3, 0.5)), "mixing=0.5: SDTTObjective knows no noise but the mask"),
    (lambda: DuoObjective(PLAIN, MASKED, steps=2), "mixing=0.0: DuoObjective knows no noise but the uniform"),
    (lambda: SDTTObjective(dataclasses.replace(PLAIN, attention="causal"), MASKED), "network.attention='causal'"),
])
def test_mistakes_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# The noise of Duo -----------------------------------------------------------------------------------------------------


def kept(ratio, ids, points=200_001):
    """P(z_0 + ratio > the largest of the others) of ``ids`` standard normals, by quadrature."""
    from scipy.stats import norm

    v = np.linspace(-12, 12 + ratio, points)
    return np.trapezoid(norm.pdf(v - ratio) * norm.cdf(v) ** (ids - 1), v)


def alpha_of(ratio, ids):
    return (kept(ratio, ids) * ids - 1) / (ids - 1)


def test_the_gaussian_s_level_is_the_reference_s_uniform_one(golden):
    for gamma, alpha in zip(golden["gamma"], golden["alpha_usdm"], strict=True):
        signal = 1 / (1 + np.exp(gamma))  # a^2 = sigmoid(-gamma)
        assert alpha_of((signal / (1 - signal)) ** 0.5, int(golden["vocab_size"])) == pytest.approx(alpha, abs=1e-9)


def test_the_distance_is_the_reference_s(golden):
    student, teacher = (Prediction.from_logits(jnp.asarray(golden[f"{of}_logits"])) for of in ("student", "teacher"))
    for forward, name in ((False, "dcd_kl_bwd"), (True, "dcd_kl_fwd")):
        objective = DuoObjective(dataclasses.replace(PLAIN), Process(12, None, 1.0), forward_kl=forward)
        np.testing.assert_allclose(objective.distance(student, teacher), golden[name], rtol=2e-5)


@pytest.fixture(scope="module")
def golden():
    from pathlib import Path

    return np.load(Path(__file__).parents[1] / "golden" / "diffusion_duo.npz")


@pytest.mark.parametrize("spared", [False, True], ids=["all", "all but the mask"])
def test_one_gaussian_for_both_times_is_one_key_for_both(spared):
    """The pair (x_t, x_s): of the argmax of N Gaussians, of `Process.corrupt` with the same keys, in closed form."""
    size, x, rows = 5, 3, 200_000
    process = Process(size, 1, 1.0, uniform_hits_mask=not spared)
    ids = np.array([i for i in range(size) if not (spared and i == 1)])
    t, s = 0.7, 0.4
    alpha = [float(process.schedule.alpha(jnp.float32(time))) for time in (t, s)]
    keys = jax.random.split(KEY, 20)
    tokens = jnp.full((20, rows // 20), x, jnp.int32)
    ours = [np.asarray(jax.jit(process.corrupt)(keys, tokens, jnp.full(20, time))).reshape(-1) for time in (t, s)]

    z = np.random.default_rng(0).standard_normal((rows, len(ids)))
    shift = (ids == x).astype(float)
    direct = [ids[(z + ratio_of(a, len(ids)) * shift).argmax(1)] for a in alpha]

    exact = np.zeros((size, size))
    exact[ids, ids] = (1 - alpha[1]) / len(ids)
    exact[ids, x] += (alpha[1] - alpha[0]) / len(ids)
    exact[x, x] += alpha[0]
    assert exact.sum() == pytest.approx(1)
    for pair in (ours, direct):
        counts = np.bincount(pair[0] * size + pair[1], minlength=size**2).reshape(size, size)
        assert (counts[exact == 0] == 0).all()
        assert (np.abs(counts - rows * exact) < 4.5 * np.sqrt(rows * exact) + 1e-9).all()


def ratio_of(alpha, ids):
    """The shift r at which `alpha_of` is ``alpha``."""
    from scipy.optimize import brentq

    return brentq(lambda r: alpha_of(r, ids) - alpha, 0.0, 20.0, xtol=1e-10)
