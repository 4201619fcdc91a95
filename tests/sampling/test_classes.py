"""Canvases whose rows ask for a class: guidance against a call without class, and the invariances with classes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.guidance import guide
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, CausalDenoiser, Denoiser
from mdlm_jax.models.sharding import batch_sharding, make_mesh, replicated
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import Canvas, blank, canvas
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.rows import Row, batches
from tests.marks import slow_unless

VOCAB, MASK, LENGTH, CLASSES = 7, 6, 6, 3
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32, conditioning="constant",
                            classes=CLASSES)
BLOCKS = dataclasses.replace(NETWORK, attention="block_causal", block_length=2)
LABELS = np.array([2, 0, -1, 1])
MIXED = Ancestral(Process(VOCAB, MASK, 0.3))


@functools.cache
def params_of(network):
    """Laws that are uneven and differ much between classes."""
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: x + 0.5 * rng.standard_normal(x.shape, np.float32),
                        api.init(network, jax.random.key(1)))


def run(labels=LABELS, network=NETWORK, decoder=MIXED, model=None, on=None, **options):
    on = blank(MASK, len(labels), LENGTH, condition=labels) if on is None else on
    params = options.pop("params", None) or params_of(network)
    return decode(model or Denoiser(network), params, on, decoder, **{"steps": 6, "seed": 3} | options)


def rows_of(rows: Canvas, index) -> Canvas:
    return jax.tree.map(lambda x: x[index], rows)


@dataclasses.dataclass(frozen=True)
class ByClass:
    """Logits are the row of the class in a table; the last for none."""

    contract, shifted, timed, learned, process, classes = "bidirectional", False, False, False, None, CLASSES

    def run(self, params, call: Call, cache=None):
        index = jnp.where(call.condition < 0, CLASSES, call.condition)
        logits = jnp.broadcast_to(params[index][:, None], (*call.tokens.shape, VOCAB))
        return Prediction.from_logits(logits), None


@pytest.mark.parametrize(("mixing", "strength"), [(0.0, 0.0), (0.0, 1.5), (1.0, 1.0)],
                         ids=["plain", "masked", "uniform"])
def test_samples_follow_the_guided_law(mixing, strength):
    """Every position is independent here, so samples of one step follow p_c^(1+w) / p^w of their class, counted."""
    table = np.random.default_rng(0).normal(0, 0.7, (CLASSES + 1, VOCAB)).astype(np.float32)
    rows = 3000
    labels = np.arange(rows) % CLASSES
    found = decode(ByClass(), jnp.asarray(table), blank(MASK, rows, 4, condition=labels),
                   Ancestral(Process(VOCAB, MASK, mixing)), steps=1, guidance=strength)
    for k in range(CLASSES):
        log_p = table[[k, CLASSES], :MASK].astype(np.float64)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        wanted = np.exp((1 + strength) * log_p[0] - strength * log_p[1])
        wanted /= wanted.sum()
        seen = np.bincount(np.asarray(found.tokens)[labels == k].ravel(), minlength=VOCAB)[:MASK] / (4 * rows / CLASSES)
        # The last step at t = 1 keeps a token that is noise with probability alpha(1) = 1e-3 only.
        np.testing.assert_allclose(seen, wanted, atol=4.5 * np.sqrt(0.25 / (4 * rows / CLASSES)) + 2e-3)


def test_the_second_call_has_no_class_and_the_same_tokens():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Watching(ByClass):
        def run(self, params, call, cache=None):
            jax.debug.callback(lambda *seen: calls.append([np.asarray(x) for x in seen]), call.tokens, call.condition)
            return super().run(params, call, cache)

    prompt = np.array([1, 2], np.int32)
    found = decode(Watching(), jnp.zeros((CLASSES + 1, VOCAB)), blank(MASK, 4, LENGTH, prompt, condition=LABELS),
                   LowConfidence(MASK), steps=2, guidance=1.0)
    jax.effects_barrier()
    assert len(calls) == 2 and np.asarray(found.forwards).tolist() == [4] * 4
    for tokens, condition in calls:
        assert condition.tolist() == [*LABELS, -1, -1, -1, -1]
        np.testing.assert_array_equal(tokens[:4], tokens[4:])
        assert (tokens[:, :2] == prompt).all()


def test_guided_logits_are_those_of_two_calls_of_the_network():
    from mdlm_jax.sampling import forward, program
    from mdlm_jax.sampling.loop import begin

    decoder = LowConfidence(MASK)
    on = blank(MASK, 4, LENGTH, condition=LABELS)
    layout, numbers, now = begin(Denoiser(NETWORK), params_of(NETWORK), on, decoder, steps=6, guidance=0.7)
    look = program.look_at(layout.program(0), decoder, numbers, now)
    found, *_ = forward.predicted(layout.program(0), decoder, params_of(NETWORK), numbers, now, look, ~now.done)
    one, none = (api.apply(NETWORK, params_of(NETWORK), on.tokens, condition=c).logits()
                 for c in (jnp.asarray(LABELS), None))
    np.testing.assert_allclose(found.logits(), guide(one, none, 0.7), atol=1e-4)
    np.testing.assert_allclose(found.logits()[2], one[2], atol=1e-4)  # a row without class is not guided


@pytest.mark.parametrize("guidance", slow_unless([0.0, 1.0], 1.0))
def test_rows_do_not_depend_on_their_batch(guidance):
    whole = run(guidance=guidance)
    on = blank(MASK, 4, LENGTH, condition=LABELS)
    for row in range(4):
        alone = run(on=rows_of(on, slice(row, row + 1)), guidance=guidance, trace=True)
        np.testing.assert_array_equal(alone.tokens[0], whole.tokens[row])
        np.testing.assert_array_equal(alone.trace[-1][0], whole.tokens[row])


def test_classes_matter_and_none_is_what_a_canvas_without_gives():
    whole = run()
    assert (np.asarray(run(np.roll(LABELS, 1)).tokens) != np.asarray(whole.tokens)).any()
    plain = run(on=blank(MASK, 4, LENGTH))
    np.testing.assert_array_equal(plain.tokens, run(np.full(4, -1)).tokens)
    np.testing.assert_array_equal(plain.tokens[2], whole.tokens[2])


@pytest.mark.slow
def test_an_exact_cache_changes_nothing():
    greedy = {"network": BLOCKS, "decoder": LowConfidence(MASK), "block_length": 2, "guidance": 1.0}
    np.testing.assert_array_equal(run(cache="block", **greedy).tokens, run(cache="none", **greedy).tokens)


@pytest.mark.slow
def test_causal_networks_take_classes():
    causal = dataclasses.replace(NETWORK, attention="causal", logit_shift=True)
    how = {"network": causal, "model": CausalDenoiser(causal, MASK, VOCAB), "decoder": Ancestral(Process(VOCAB, MASK)),
           "block_length": 1}
    whole = run(guidance=1.0, **how)
    alone = run(on=rows_of(blank(MASK, 4, LENGTH, condition=LABELS), slice(1, 2)), guidance=1.0, **how)
    np.testing.assert_array_equal(alone.tokens[0], whole.tokens[1])


@pytest.mark.slow
def test_on_a_mesh_with_rows_that_it_does_not_divide():
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    placed = jax.device_put(params_of(NETWORK), replicated(mesh))
    assert batch_sharding(mesh).num_devices == 8
    found = run(params=placed, mesh=mesh, guidance=1.0)
    np.testing.assert_array_equal(found.tokens, run(guidance=1.0).tokens)


def test_rows_of_unequal_lengths_keep_their_class():
    rows = [Row(np.full(n, MASK, np.int32), np.ones(n, bool), i, condition=k)
            for i, (n, k) in enumerate([(40, 1), (5, 2), (9, -1)])]
    ((chosen, made),) = batches(rows, MASK, batch_size=4)
    assert chosen == [1, 2, 0] and made.condition.tolist() == [2, -1, 1, 1]
    ((_, plain),) = batches([dataclasses.replace(row, condition=None) for row in rows], MASK, batch_size=4)
    assert plain.condition is None


@pytest.mark.parametrize(("options", "message"), [
    ({"labels": np.array([3])}, r"class 3: must lie in 0\.\.2"),
    ({"labels": np.array([0]), "network": dataclasses.replace(NETWORK, classes=0)}, "trained without classes"),
    ({"on": blank(MASK, 1, LENGTH), "guidance": 1.0}, "guides towards a prompt, and the canvas has none"),
], ids=["class", "network", "guidance"])
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_class_for_every_row():
    with pytest.raises(ValueError, match=r"condition: has shape \[3\]; it must be \[2\]"):
        canvas(np.full((2, 3), MASK), np.ones((2, 3), bool), condition=[0, 1, 2])
