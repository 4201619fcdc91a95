"""The exact cache of block-causal networks: the same tokens with it and without, on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling import program
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.d2f import D2F
from mdlm_jax.sampling.decoder import decoder
from mdlm_jax.sampling.draft_edit import DraftEdit
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.sampling.loop import decode, stream
from mdlm_jax.sampling.windows import lay_out
from tests.marks import slow_unless

VOCAB, MASK, BLOCK, LENGTH, ROWS = 13, 12, 4, 20, 3
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48, attention="block_causal",
                            block_length=BLOCK)
PARAMS = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, api.init(NETWORK, jax.random.key(1)))  # far from uniform
PROMPTS = (np.array([3, 1, 4]), np.array([1, 5, 9, 2, 6]), np.array([7]))
MODEL = Denoiser(NETWORK)
POOLS = dataclasses.replace(NETWORK, moe=MoEConfig(experts=8, per_token=2, d_ff=24, router="sigmoid", normalize=True,
                                                   block=BLOCK, block_pool=2))


def given(rows=ROWS):
    """Prompts of 3, 5 and 1 tokens, so blocks of the rows begin at 0, 4 and 0."""
    tokens = np.full((rows, LENGTH), MASK, np.int32)
    for row in range(rows):
        tokens[row, : len(PROMPTS[row])] = PROMPTS[row]
    return canvas(tokens, tokens == MASK)


def run(decoder, cache, steps=20, rows=ROWS, params=PARAMS, model=MODEL, **options):
    steps = steps if decoder.reads_steps else None
    with jax.default_matmul_precision("highest"):
        return decode(model, params, given(rows), decoder, steps=steps, block_length=BLOCK, cache=cache, seed=3,
                      **options)


def assert_prompts_stay(tokens):
    for row in range(len(tokens)):
        np.testing.assert_array_equal(tokens[row, : len(PROMPTS[row])], PROMPTS[row])


CHAIN = Ancestral(Process(VOCAB, MASK))


def test_an_ancestral_chain_in_blocks_is_the_same_with_the_cache():
    plain, cached = run(CHAIN, "none"), run(CHAIN, "block")
    tokens = np.asarray(cached.tokens)
    np.testing.assert_array_equal(tokens, np.asarray(plain.tokens))
    np.testing.assert_array_equal(np.asarray(cached.forwards), np.asarray(plain.forwards))
    np.testing.assert_array_equal(np.asarray(cached.order), np.asarray(plain.order))
    assert (tokens != MASK).all() and len(np.unique(tokens, axis=0)) == ROWS
    assert_prompts_stay(tokens)


@pytest.mark.slow
def test_first_hitting_in_blocks_is_the_same_with_the_cache():
    """One by one: a block of four takes four steps, and as many forwards as it has masks."""
    decoder = FirstHitting(Process(VOCAB, MASK))
    plain, cached = run(decoder, "none"), run(decoder, "block")
    np.testing.assert_array_equal(np.asarray(cached.tokens), np.asarray(plain.tokens))
    assert np.asarray(cached.forwards).tolist() == [LENGTH - len(prompt) for prompt in PROMPTS]
    assert_prompts_stay(np.asarray(cached.tokens))


@pytest.mark.slow
def test_eight_devices_write_what_one_does():
    """Three rows on four shards: filled up, and spread as the cache is; and no block compiles again for it."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = jax.device_put(PARAMS, api.shardings(NETWORK, mesh))
    before = program.block._cache_size()
    found = run(CHAIN, "block", params=params, mesh=mesh.abstract_mesh)
    assert program.block._cache_size() == before + 2  # the first block runs from 0 on, the others do not
    np.testing.assert_array_equal(np.asarray(found.tokens), np.asarray(run(CHAIN, "block").tokens))
    now = next(stream(MODEL, params, given(), CHAIN, steps=20, block_length=BLOCK, cache="block", mesh=mesh))
    assert now.canvas.shape == (4, LENGTH) and not np.asarray(now.canvas.editable)[3].any()
    assert now.cache.key.sharding.spec[1:4] == (("replica", "fsdp", "expert"), None, "tensor")
    assert now.cache.key.addressable_shards[0].data.shape == (2, 1, now.cache.slots, 1, 8)


def test_rows_are_filled_up_for_forced_tokens_too():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = jax.device_put(PARAMS, api.shardings(NETWORK, mesh))
    now = next(stream(MODEL, params, given(), Forcible(Process(VOCAB, MASK)), steps=20, block_length=BLOCK, mesh=mesh,
                      forced=jnp.zeros((ROWS, LENGTH), jnp.int32)))
    assert now.finished.tolist() == [False, False, False, True]


@decoder
class Forcible(Ancestral):
    scorable = True


@pytest.mark.parametrize("fields, how, message", [
    ({"conditioning": "time", "time_features": 8, "condition_dim": 8}, {}, "the network reads the noise level"),
    ({"attention": "bidirectional", "block_length": 1}, {}, "is for block_causal and causal networks"),
    ({}, {"block_length": 2, "steps": 10}, "blocks of 2 must be whole blocks of the network, 4"),
    ({"moe": dataclasses.replace(POOLS.moe, block=8)}, {}, "8 positions share a pool of experts"),
    ({}, {"decoder": DraftEdit(MASK, reference=True)}, "DraftEdit looks beyond the block"),
    ({}, {"decoder": Ancestral(Process(VOCAB, MASK), reuse=True)}, "cache='block': Ancestral leaves forwards out"),
])
def test_where_it_would_not_be_exact(fields, how, message):
    how = {"decoder": CHAIN, "steps": 20, "block_length": BLOCK, "cache": "block"} | how
    with pytest.raises(ValueError, match=message):
        decode(Denoiser(dataclasses.replace(NETWORK, **fields)), PARAMS, given(), how.pop("decoder"), **how)


# Several blocks at a time ---------------------------------------------------------------------------------------------


def test_blocks_of_the_reach_see_each_other_and_nothing_else_changes():
    """A block-causal network given such orders is a bidirectional one up to the end of the newest block."""
    tokens = jax.random.randint(jax.random.key(0), (1, 12), 0, VOCAB)
    index = jnp.arange(12)[None]
    order = jnp.where((index >= 4) & (index < 8), 8, index)
    together = MODEL.run(PARAMS, Call(tokens, jnp.zeros((1,)), order=order))[0].logits()
    apart = MODEL(PARAMS, tokens).logits()
    np.testing.assert_allclose(together[:, :4], apart[:, :4], atol=1e-5)
    np.testing.assert_array_equal(jnp.abs(together - apart).max((0, 2))[4:8] > 1e-3, True)
    whole = dataclasses.replace(NETWORK, attention="bidirectional", block_length=1)
    first = MODEL.run(PARAMS, Call(tokens[:, :8], jnp.zeros((1,)), order=jnp.full((1, 8), 4)))[0].logits()
    np.testing.assert_allclose(first, Denoiser(whole)(PARAMS, tokens[:, :8]).logits(), atol=1e-5)


SEVERAL = JointThreshold(MASK, 0.3, 0.0, max_post_steps=3, reach=2)


def test_multi_block_editing_is_the_same_with_the_cache():
    plain, cached = run(SEVERAL, "none", trace=True), run(SEVERAL, "block", trace=True)
    np.testing.assert_array_equal(cached.trace, plain.trace)
    np.testing.assert_array_equal(np.asarray(cached.forwards), np.asarray(plain.forwards))
    for frame in cached.trace:
        assert_prompts_stay(frame)
    assert (cached.trace[-1] != MASK).all()
    changed = (cached.trace[1:] != cached.trace[:-1]) & (cached.trace[:-1] != MASK)
    begun = lambda row, low: (cached.trace[:-1, row, low:] != MASK).any(1)  # noqa: E731
    edits_behind = edits_too_far = 0
    for row, start in enumerate((0, 4, 0)):
        for low in range(start + BLOCK, LENGTH, BLOCK):  # once the block at low has begun
            edits_behind += changed[begun(row, low), row, low - BLOCK : low].sum()
            edits_too_far += changed[begun(row, low), row, : low - BLOCK].sum()
    assert edits_behind and not edits_too_far


def of_experts() -> dict:
    return jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, api.init(POOLS, jax.random.key(1)))


def test_blocks_that_see_each_other_keep_their_own_pools_of_experts():
    """As in a bidirectional network, where a block's pool goes by the index too; that of another size is another."""
    tokens, params = jax.random.randint(jax.random.key(0), (1, 8), 0, VOCAB), of_experts()
    together = Denoiser(POOLS).run(params, Call(tokens, jnp.zeros((1,)), order=jnp.full((1, 8), 4)))[0].logits()
    logits = lambda **moe: Denoiser(dataclasses.replace(  # noqa: E731
        POOLS, attention="bidirectional", block_length=1, moe=dataclasses.replace(POOLS.moe, **moe)))(params, tokens)
    np.testing.assert_allclose(together, logits().logits(), atol=1e-5)
    assert np.abs(together - logits(block=1).logits()).max() > 1e-2


@pytest.mark.parametrize("decoder", slow_unless(
    [CHAIN, SEVERAL, D2F(MASK, 1.0, threshold=0.3, add=0.0, activate=0.25, ahead=2)], CHAIN))
def test_pools_of_experts_are_the_same_with_the_cache(decoder):
    model, params = Denoiser(POOLS), of_experts()
    plain, cached = (run(decoder, cache, model=model, params=params) for cache in ("none", "block"))
    for field in ("tokens", "order", "forwards"):
        np.testing.assert_array_equal(np.asarray(getattr(cached, field)), np.asarray(getattr(plain, field)))


def test_a_window_of_the_suffix_holds_the_blocks_of_the_reach():
    """Else the scores of an earlier block would be taken from the window's end."""
    model = Denoiser(dataclasses.replace(NETWORK, attention="bidirectional", block_length=1))
    for reach in (1, 2, 3):
        rule = JointThreshold(MASK, reach=reach)
        layout = lay_out(model, given(), rule, block_length=BLOCK, cache="prefix", guided=False)
        for number in range(layout.blocks):
            window, low = layout.program(number).inner, layout.low(number)
            begin = np.maximum(low - window.back, 0)
            assert (begin == np.maximum(low - (reach - 1) * BLOCK, 0)).all()  # where the look begins
            assert (begin + window.length >= LENGTH).all() and (begin + window.length <= layout.slots).all()


@pytest.mark.slow
def test_one_block_more_costs_forwards_and_changes_the_text():
    alone = run(dataclasses.replace(SEVERAL, reach=1), "block")
    assert (np.asarray(alone.tokens) != np.asarray(run(SEVERAL, "block").tokens)).any()


@pytest.mark.slow
@pytest.mark.parametrize("reach", [1, 2])
def test_a_row_does_not_depend_on_its_batch(reach):
    decoder = dataclasses.replace(SEVERAL, reach=reach)
    whole = np.asarray(run(decoder, "block").tokens)
    np.testing.assert_array_equal(np.asarray(run(decoder, "block", rows=1).tokens), whole[:1])
