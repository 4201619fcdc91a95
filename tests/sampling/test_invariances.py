"""What holds for every decoder: rows do not depend on their batch, compiled or driven by Python, with an exact cache or
without, on one device or eight; what is given is never touched, and no mask is left.

By default on a model of a few lines, which compiles quickly; the slow tests repeat it with a Transformer, padding and
caches.
"""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser, ScheduledDenoiser
from mdlm_jax.models.sharding import batch_sharding, make_mesh, replicated
from mdlm_jax.sampling import registry as names
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.loop import Decoded, decode
from tests.marks import slow_unless
from tests.sampling import registry

VOCAB, MASK, ROWS, LENGTH, BLOCK = 13, 11, 4, 12, 4
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32,
                            attention="block_causal", block_length=BLOCK)
NETWORKS = {"block_causal": NETWORK,
            "bidirectional": dataclasses.replace(NETWORK, attention="bidirectional", block_length=1),
            "permutation": dataclasses.replace(NETWORK, attention="permutation", block_length=1)}
FIRST = {type(case.make(VOCAB, MASK)): name for name, case in reversed(registry.CASES.items())}
ALIKE = {"remdm_rescale", "remdm_loop", "block_threshold", "margin", "factor", "entropy_bound_entropy"}
every = pytest.mark.parametrize("name", slow_unless(  # by default one case a class, its first, and of classes alike one
    registry.CASES, *(name for name in FIRST.values() if name not in ALIKE)))
every_slow = pytest.mark.parametrize("name", slow_unless(registry.CASES))
blockwise_slow = pytest.mark.parametrize("name", slow_unless(
    name for name, case in registry.CASES.items() if "block_length" in case.options and case.cached))


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Logits from the token and its left neighbour; the mask is a favourite. A shadow has its token's."""

    network: TransformerConfig
    scheduled: bool
    shifted = False
    learned = False
    timed = False
    process = None

    @property
    def contract(self) -> str:
        return self.network.attention

    def run(self, params, call: Call, cache: None) -> tuple[Prediction, None]:
        seen = params[call.tokens] if call.embeddings is None else call.embeddings
        left = jnp.roll(seen, 1, axis=1)
        if call.shadow is not None:
            left = jnp.roll(seen[:, : -call.shadow.shape[1]], 1, axis=1)
            left = jnp.concatenate([left, jnp.take_along_axis(left, call.shadow[..., None], axis=1)], axis=1)
        head = Head(2.0 * jnp.eye(registry.WIDTH, VOCAB), 2.0 * (jnp.arange(VOCAB) == MASK))
        found = Prediction(seen + 0.7 * left, head)
        return (ScheduledPrediction(**vars(found), powers=1.0 + jnp.arange(VOCAB) / VOCAB) if self.scheduled
                else found), None


@functools.cache
def model_of(kind: str, real: bool):
    """A model whose laws are uneven, and which likes to predict the mask, with its parameters."""
    network = NETWORKS.get(kind, NETWORKS["bidirectional"])
    if not real:
        laws = jax.random.normal(jax.random.key(3), (VOCAB, VOCAB))
        return Neighbours(network, kind == "scheduled"), jnp.pad(laws, ((0, 0), (0, registry.WIDTH - VOCAB)))
    params = api.init(network, jax.random.key(3))
    params["embedding"] *= 20.0
    params["head"] *= 40.0 * jnp.where(jnp.arange(VOCAB) == MASK, 1.5, 1.0)
    if kind != "scheduled":
        return Denoiser(network), params
    return ScheduledDenoiser(network), {"network": params, "schedule": VectorSchedule().init(VOCAB)}


def given(editable, segment=None, seed: int = 0) -> Canvas:
    """Random tokens, masks among them where nothing is to be written, and masks where something is."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, editable.shape)
    return canvas(np.where(editable, MASK, tokens), editable, segment=segment)


def usual(name: str, real: bool) -> Canvas:
    """A prompt of none, of three tokens with another given further on, of two, of one; there is padding behind it."""
    editable, segment = np.ones((ROWS, LENGTH), bool), np.ones((ROWS, LENGTH), np.int32)
    editable[1, :3] = editable[1, 7] = editable[2, :2] = editable[3, 0] = False
    editable[3, 10:] = segment[3, 10:] = 0
    return given(editable, segment if padded(name, real) else None)


def padded(name: str, real: bool) -> bool:
    return real and registry.CASES[name].network != "scheduled"


def run(name: str, rows: Canvas, real: bool, decoder=None, model=None, **options) -> Decoded:
    case = registry.CASES[name]
    model, params = model or model_of(case.network, real)
    decoder = case.make(VOCAB, MASK) if decoder is None else decoder
    how = {"steps": case.steps, "seed": 5, **case.options, **options}
    return decode(model, how.pop("params", params), rows, decoder, **how)


@functools.cache
def usual_run(name: str, real: bool) -> Decoded:
    return run(name, usual(name, real), real)


def rows_of(rows: Canvas, index) -> Canvas:
    return jax.tree.map(lambda x: x[index], rows)


def assert_same(found: Decoded, expected: Decoded, index=slice(None)) -> None:
    for field in ("tokens", "order", "forwards"):
        np.testing.assert_array_equal(np.asarray(getattr(found, field)), np.asarray(getattr(expected, field))[index],
                                      err_msg=field)


# All at once ----------------------------------------------------------------------------------------------------------


def test_every_decoder_is_in_the_registry():
    made = {type(case.make(VOCAB, MASK)) for case in registry.CASES.values()}
    assert made == registry.decoders()
    named = {cls for _, cls, _ in names.DECODERS.values()}
    assert named <= {cls.__name__ for cls in made | registry.WITH_LAYER}


def rows_alone(name: str, real: bool) -> None:
    """Driven by Python one by one, they are those of a compiled batch."""
    whole = usual_run(name, real)
    for row in range(ROWS):
        alone = run(name, rows_of(usual(name, real), slice(row, row + 1)), real, trace=True)
        assert_same(alone, whole, slice(row, row + 1))
        np.testing.assert_array_equal(alone.trace[-1], np.asarray(alone.tokens))


@st.composite
def canvases(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Any holes, padding on the right, and a seed; something to write in every row."""
    seed = draw(st.integers(0, 2**31 - 1))
    rng, share = np.random.default_rng(seed), draw(st.floats(0, 1))
    length = rng.integers(1, LENGTH + 1, (ROWS, 1))
    segment = np.arange(LENGTH) < length
    editable = (rng.random((ROWS, LENGTH)) < share) & segment
    editable[np.arange(ROWS), rng.integers(0, length[:, 0])] = True
    return editable, segment.astype(np.int32), seed


def what_is_given_stays_and_no_mask_is_left(name: str, real: bool, examples: int) -> None:
    case = registry.CASES[name]
    numbers = st.fixed_dictionaries({field: st.floats(*ends) for field, ends in case.numbers.items()})

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(canvases(), numbers, st.sampled_from([1, 2, 4]))
    def check(drawn, values, more):
        editable, segment, seed = drawn
        rows = given(editable, segment if padded(name, real) else None, seed)
        decoder = dataclasses.replace(case.make(VOCAB, MASK), **values)
        found = run(name, rows, real, decoder, steps=case.steps and more * case.steps, seed=seed)
        tokens, start, order = np.asarray(found.tokens), np.asarray(rows.tokens), np.asarray(found.order)
        np.testing.assert_array_equal(tokens[~editable], start[~editable])
        assert ((tokens >= 0) & (tokens < VOCAB)).all() and (order[~editable] == -1).all()
        if not case.leaves_masks:
            assert (tokens[editable] != MASK).all()

    check()


def eight_devices_give_what_one_does(name: str, real: bool) -> None:
    """Each row twice, with the same id."""
    mesh = make_mesh({"replica": 2, "fsdp": 4, "tensor": 1})
    twice = rows_of(usual(name, real), np.tile(np.arange(ROWS), 2))
    params = jax.device_put(model_of(registry.CASES[name].network, real)[1], replicated(mesh))
    found = run(name, jax.device_put(twice, batch_sharding(mesh)), real, params=params)
    assert_same(found, usual_run(name, real), np.tile(np.arange(ROWS), 2))


@every
def test_rows_alone_driven_by_python_are_those_of_a_compiled_batch(name):
    rows_alone(name, real=False)


@every
def test_what_is_given_stays_and_no_mask_is_left(name):
    what_is_given_stays_and_no_mask_is_left(name, real=False, examples=15)


@pytest.mark.parametrize("name", ["low_confidence"])
def test_eight_devices_give_what_one_does(name):
    eight_devices_give_what_one_does(name, real=True)


@pytest.mark.parametrize("name", ["low_confidence"])
def test_the_exact_cache_changes_nothing(name):
    exact_cache(name)


# With a Transformer ---------------------------------------------------------------------------------------------------


def exact_cache(name: str) -> None:
    assert_same(run(name, usual(name, True), True, cache="block"), usual_run(name, True))


@every_slow
def test_rows_alone_of_a_transformer(name):
    rows_alone(name, real=True)


@every_slow
def test_a_transformer_leaves_what_is_given_and_no_mask(name):
    what_is_given_stays_and_no_mask_is_left(name, real=True, examples=100)


@every_slow
def test_eight_devices_give_what_one_does_for_every_decoder(name):
    eight_devices_give_what_one_does(name, real=True)


@every_slow
def test_a_batch_is_its_rows(name):
    for row in range(ROWS):
        index = slice(row, row + 1)
        assert_same(run(name, rows_of(usual(name, True), index), True), usual_run(name, True), index)


@every_slow
def test_the_compiled_loop_is_the_one_driven_by_python(name):
    assert_same(run(name, usual(name, True), True, trace=True), usual_run(name, True))


@blockwise_slow
def test_the_exact_cache_changes_nothing_for_any_decoder(name):
    if registry.CASES[name].network == "block_causal":
        exact_cache(name)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@blockwise_slow
def test_approximate_caches_keep_rows_apart_and_what_is_given(name, cache):
    """As with the exact one, except that the result may be another."""
    case = registry.CASES[name]
    if case.network != "block_causal":
        pytest.skip("a network of its own")
    model, params = model_of("bidirectional", True)
    how = {"steps": case.steps, "seed": 5, "cache": cache, **case.options}
    rows = usual(name, True)
    whole = decode(model, params, rows, case.make(VOCAB, MASK), **how)
    for row in range(ROWS):
        index = slice(row, row + 1)
        alone = decode(model, params, rows_of(rows, index), case.make(VOCAB, MASK), trace=True, **how)
        assert_same(alone, whole, index)
    fixed, tokens = ~np.asarray(rows.editable), np.asarray(whole.tokens)
    np.testing.assert_array_equal(tokens[fixed], np.asarray(rows.tokens)[fixed])
    assert case.leaves_masks or (tokens[~fixed] != MASK).all()


@every_slow
def test_guided_rows_are_those_of_a_guided_batch(name):
    case = registry.CASES[name]
    if case.make(VOCAB, MASK).mask_id is None:
        pytest.skip("nothing to mask")
    if not case.guided:
        pytest.skip("takes no guidance")
    model = model_of("bidirectional" if case.network == "block_causal" else case.network, True)
    rows = rows_of(usual(name, True), slice(1, None))
    whole = run(name, rows, True, model=model, guidance=0.8)
    for row in range(ROWS - 1):
        index = slice(row, row + 1)
        assert_same(run(name, rows_of(rows, index), True, model=model, guidance=0.8, trace=True), whole, index)
