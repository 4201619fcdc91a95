"""Di4C's loss: its terms against laws written out, the times, what trains, and the rows it draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, logsumexp

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.models import api, flops
from mdlm_jax.models.sharding import batch_sharding, make_mesh
from mdlm_jax.training import adapters
from mdlm_jax.training.build import build_bound, build_objective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.di4c import Di4CObjective
from mdlm_jax.training.state import TrainState, state_shardings
from mdlm_jax.training.step import make_train_step
from tests.training import tiny

NETWORK = dataclasses.replace(tiny.NETWORK, latent=4)
ROWS = 6
DI4C = Di4CObjective(NETWORK, tiny.process(), steps=8, latents=3, delta=0.3, power=2.0,
                     head_budget=3 * tiny.VOCAB * ROWS * 4)
KEY = jax.random.key(5)
BATCH = jax.tree.map(jnp.asarray, tiny.batch(ROWS))
INDEX = jnp.arange(ROWS)
LEVELS = jnp.array([0.1, 0.25, 0.4, 0.6, 0.8, 0.97])
LOSS = jax.jit(lambda weights, batch, rows, u: DI4C.loss_at(weights, batch, KEY, rows, u))
LOGITS = jax.jit(lambda params, tokens, latent: api.apply(
    NETWORK, params, tokens, attention_mask=BATCH["attention_mask"], latent=latent).logits())
WRITTEN = jax.jit(lambda weights, noisy, t: DI4C.written(
    weights, BATCH, noisy, t, DI4C.taught(weights, BATCH, noisy, t, KEY, INDEX), KEY, INDEX))
SLOPE = jax.jit(jax.grad(lambda weights: DI4C.loss_at(weights, BATCH, KEY, INDEX, LEVELS).objective()))


def weights(objective=DI4C, same=False):
    """Of student and teacher; ``same``: a student that is its teacher."""
    network = tiny.weights(objective)["network"]
    if same:
        zero = {"latent": jax.tree.map(jnp.zeros_like, network["latent"])}
        return {"network": network | zero, "teacher": network | zero}
    return {"network": network, "teacher": tiny.weights(objective, seed=7)["network"]}


def law(params, tokens, latent):
    """[B, L, V] log p, float64, of the network as it is."""
    made = np.array(LOGITS(params, tokens, latent), np.float64)
    made[..., tiny.MASK] = -np.inf
    return log_softmax(made, -1)


def test_every_term_is_the_one_of_the_laws_written_out():
    found = LOSS(weights(), BATCH, INDEX, LEVELS).terms
    t, far = map(np.asarray, DI4C.times(LEVELS))
    np.testing.assert_array_equal(far, LEVELS >= 0.3)
    noisy = DI4C.process.corrupt(DI4C.noise_keys(KEY, INDEX), BATCH["tokens"], jnp.asarray(t), BATCH["noise_mask"])
    teacher = law(weights()["teacher"], noisy, DI4C.latent(KEY, INDEX))
    written = np.asarray(WRITTEN(weights(), noisy, jnp.asarray(t)))
    latents = np.asarray(DI4C.latents_of(KEY, INDEX))
    student = np.stack([law(weights()["network"], noisy, jnp.asarray(latents[:, m])) for m in range(3)], 1)
    counted = np.asarray((noisy == tiny.MASK) & BATCH["loss_mask"])
    mixed = logsumexp(student, 1) - np.log(3)

    def kl(p, q):
        p, q = np.maximum(p, -1e3), np.maximum(q, -1e3)
        return (np.exp(p) * (p - q)).sum(-1)

    def gained(tokens):
        """[B]: log p(x) - sum_i log p_i(x_i) over what counts."""
        each = np.take_along_axis(student, np.asarray(tokens)[:, None, :, None].repeat(3, 1), -1)[..., 0]
        each = np.where(counted[:, None], each, 0.0)
        return logsumexp(each.sum(-1), 1) - np.log(3) - (logsumexp(each, 1) - np.log(3)).sum(-1)

    alpha = np.asarray(DI4C.process.schedule.alpha(jnp.asarray(t))) ** 2
    apart = np.where(counted, kl(teacher[:, None], student).mean(1), 0.0)
    together = np.where(counted, kl(teacher, mixed), 0.0)
    np.testing.assert_allclose(found["distilled"], np.where(far[:, None], 0.0, apart), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["marginal"], (far + alpha)[:, None] * together, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["data"].sum(1), -alpha * gained(BATCH["tokens"]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["consistency"].sum(1), -1.0 * far * gained(written), rtol=1e-3, atol=1e-4)
    assert (np.abs(found["data"].sum(1)) > 1e-3).any() and (np.abs(found["consistency"].sum(1)) > 1e-3).any()


def test_a_student_that_is_its_teacher_loses_nothing():
    """Every component is the teacher: no divergence, no correlations, and no gradient that would part them."""
    for term in LOSS(weights(same=True), BATCH, INDEX, LEVELS).terms.values():
        np.testing.assert_allclose(term, 0.0, atol=1e-5)
    for leaf in jax.tree.leaves(SLOPE(weights(same=True))):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-4)


def test_only_the_student_takes_a_gradient():
    grads = SLOPE(weights())
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["teacher"]))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["network"]))


def test_rows_do_not_depend_on_the_others():
    whole = LOSS(weights(), BATCH, INDEX, LEVELS)
    some = jnp.array([4, 1, 1, 5, 0, 4])
    part = LOSS(weights(), jax.tree.map(lambda x: x[some], BATCH), some, LEVELS[some])
    for name, term in part.terms.items():
        np.testing.assert_allclose(term, whole.terms[name][some], rtol=1e-4, atol=1e-5)


def test_rows_written_fill_the_masks_of_noisy_rows():
    t, _ = DI4C.times(LEVELS)
    noisy = DI4C.process.corrupt(DI4C.noise_keys(KEY, INDEX), BATCH["tokens"], t, BATCH["noise_mask"])
    written = WRITTEN(weights(), noisy, t)
    masked = np.asarray(noisy == tiny.MASK)
    assert masked.any() and (np.asarray(written) != tiny.MASK).all()
    np.testing.assert_array_equal(written[~masked], noisy[~masked])


def test_times_and_latents_have_their_laws():
    u = (np.arange(1000) + 0.5) / 1000
    t, far = map(np.asarray, DI4C.times(jnp.asarray(u)))
    assert (~far).mean() == pytest.approx(0.3, abs=1e-3)
    np.testing.assert_array_equal(far, t >= 0.3)
    for some, low, high in ((t[~far], 0.0, 0.3), (t[far], 0.3, 1.0)):
        middle = (np.quantile(some, [0.25, 0.5, 0.75]) - low) / (high - low)
        np.testing.assert_allclose(middle, [0.25, 0.5, 0.75], atol=5e-3)
    latents = np.asarray(DI4C.latents_of(KEY, jnp.arange(2000)))
    np.testing.assert_array_equal((latents * 3).astype(int), np.broadcast_to(np.arange(3), latents.shape))
    np.testing.assert_allclose(np.quantile(latents, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def step(sizes, devices, **train):
    """(loss, gradient) of one step of plain descent at rate 1 on 8 rows."""
    config = TrainConfig(objective="di4c:8,3,0.3,2", init_from="x", batch_size=8, ema_decay=0.0, **train)
    mesh, plan, rule = make_mesh(sizes, jax.devices()[:devices]), adapters.of(config), optax.sgd(1.0)
    objective = dataclasses.replace(DI4C, data_shards=max(1, devices // 2))
    trains = {"network": weights()["network"]}
    state = TrainState(jnp.zeros((), jnp.int32), trains, rule.init(trains), None, {"teacher": weights()["teacher"]})
    state = jax.device_put(state, state_shardings(objective, rule, False, mesh, plan))
    after, metrics = make_train_step(objective, rule, config, mesh)(
        state, jax.device_put(tiny.batch(8), batch_sharding(mesh)))
    return float(metrics["totals"].mean()), jax.device_get(after.trainable)


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"microbatches": 2}], ids=("whole", "microbatches"))
def test_a_mesh_and_microbatches_change_nothing(train):
    loss, after = step({"replica": 1, "fsdp": 1, "tensor": 1}, 1)
    found, there = step({"replica": 1, "fsdp": 2, "tensor": 2}, 4, **train)
    assert found == pytest.approx(loss, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), there, after)


def test_flops_are_those_of_the_copies_and_of_what_has_no_gradient():
    tokens = 4 * tiny.LENGTH
    forward = flops.forward_flops(NETWORK, tokens, tiny.LENGTH, 0)
    head = flops.forward_flops(NETWORK, tokens, tiny.LENGTH, tokens) - forward
    assert DI4C.train_flops(4, tiny.LENGTH) == 3 * 3 * (forward + head) + 2 * forward + 4 * head


def test_the_bound_of_a_mixture_is_that_of_drawn_latents():
    config = tiny.run_config(train={"objective": "di4c:8,3,0.3,1", "init_from": "x"}, model={"latent": 4},
                             eval={"draws": 1})
    bound = build_bound(config, NETWORK, tiny.process(), 1)
    assert isinstance(bound, CountObjective)
    found = bound.loss_at(weights(), BATCH, KEY, INDEX, LEVELS).per_row()
    assert np.isfinite(found).all() and (np.asarray(found) > 0).all()
    objective, _ = build_objective(config, NETWORK, tiny.process(), 1)
    assert (objective.steps, objective.latents, objective.delta, objective.power) == (8, 3, 0.3, 1.0)


def test_a_run_starts_from_a_network_without_a_latent():
    plan = adapters.of(TrainConfig(objective="di4c:8,3,0.3,1", init_from="x"))
    fresh = DI4C.init(jax.random.key(0))
    trains, stays = adapters.split(plan, NETWORK, fresh, jax.random.key(0))
    given = tiny.weights(CountObjective(tiny.NETWORK, tiny.process()))["network"]
    trains, stays = adapters.started(plan, trains, stays, {"network": given})
    assert jax.tree.structure(trains["network"]) == jax.tree.structure(stays["teacher"])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(stays["teacher"].pop("latent")))
    jax.tree.map(np.testing.assert_array_equal, stays["teacher"], given)
    for name, leaf in given.items():
        jax.tree.map(np.testing.assert_array_equal, trains["network"][name], leaf)
    jax.tree.map(np.testing.assert_array_equal, trains["network"]["latent"], fresh["network"]["latent"])


@pytest.mark.parametrize(("fields", "message"), [
    ({"power": -1.0}, "power=-1.0"), ({"steps": 0}, "steps=0"), ({"latents": 0}, "latents=0"),
    ({"delta": 1.0}, "delta=1.0"),
    ({"process": tiny.process(0.5)}, "mixing=0.5"), ({"network": tiny.NETWORK}, "network.latent=0"),
])
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DI4C, **fields)


def test_a_network_with_a_latent_is_used_and_trained_by_nothing_else():
    config = tiny.run_config(model={"latent": 4})
    with pytest.raises(ConfigError, match="model.latent=4: train.objective=di4c teaches"):
        build_objective(config, NETWORK, tiny.process(), 1)


@pytest.mark.parametrize(("sections", "message"), [
    ({"train": {"objective": "di4c:8,3,0.3,1"}}, "give it with train.init_from"),
    ({"train": {"objective": "di4c:8,2.5,0.3,1", "init_from": "x"}}, "the latents must be a whole number"),
    ({"train": {"objective": "di4c:0,2,0.3,1", "init_from": "x"}}, "the steps must be a whole number"),
    ({"train": {"objective": "di4c:8,2,0.3,-1", "init_from": "x"}}, "POWER"),
    ({"train": {"objective": "di4c:8,2,1,1", "init_from": "x"}}, "DELTA"),
    ({"train": {"objective": "di4c:8,2,0.3,1", "init_from": "x", "lora_rank": 2}}, "train.lora_rank=2"),
    ({"train": {"objective": "di4c:8,2,0.3,1", "init_from": "x"}}, "model.latent=0: train.objective=di4c teaches"),
    ({"train": {"objective": "di4c:8,2,0.3,1", "init_from": "x", "weighting": "constant"}, "model": {"latent": 8}},
     "does not read"),
    ({"train": {"objective": "di4c:8,2,0.3,1", "init_from": "x"}, "model": {"latent": 8}, "process": {"mixing": 0.5}},
     "knows no noise but the mask"),
    ({"train": {"objective": "di4c:8,2,0.3,1", "init_from": "x"}, "model": {"latent": 8, "attention": "causal"}},
     "is for networks that see whole rows"),
])
def test_configurations_that_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        tiny.run_config(**sections)
