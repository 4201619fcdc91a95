"""MARIA's decoding: one forward, then the law of whole forwards from left to right, exactly scored."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.evaluation.scoring import forced_log_prob, to_own_joint
from mdlm_jax.models import api, fused
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.fused import FusedConfig, FusedHead
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.models.twin import Twin
from mdlm_jax.sampling import memory
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.maria import MARIA
from tests.marks import slow_unless
from tests.sampling import joined
from tests.sampling.joined import EVERY, LENGTH, MASK, NET, NETWORK, TEXT, TWIN

MODEL = Denoiser(NETWORK)
CONFIG = FusedConfig(NETWORK, joined.TWIN_NETWORK)
HEAD = FusedHead(joined.weights(fused.abstract(CONFIG), 2, 0.5), TWIN, NET["head_bias"])
RULE = MARIA(HEAD, MASK)


def law_of(canvases, rows, head=HEAD, extra=0.0):
    """[N, L, V], nats, in numpy: the head on the two networks' hidden states, the twin's of whole rows."""
    states = [joined.hidden(NETWORK, NET, canvases),
              joined.hidden(joined.TWIN_NETWORK, joined.LEFT_NET, joined.before(rows), raw=True)]
    logits = np.concatenate(states, -1) @ np.asarray(head.params["kernel"], np.float64)
    return joined.log_softmax(logits + np.asarray(head.params["bias"]) + extra)


@pytest.mark.parametrize(("where", "block"), slow_unless(
    [((1, 1, 1, 1), None), ((0, 1, 0, 1), None), ((1, 1, 1, 1), 2)], ((0, 1, 0, 1), None), ((1, 1, 1, 1), 2)))
def test_a_filling_has_the_law_of_whole_forwards(where, block):
    """What stands right of a mask is seen by the masked network, what was drawn by the twin; with blocks the masked
    network reads again."""
    where, bias = np.array(where, bool), jnp.array([0.3, -1.0, 0.0, 0.0])
    given = joined.partly(EVERY, where)
    found = forced_log_prob(MODEL, NET, given, EVERY, RULE, steps=None, batch=len(EVERY), block_length=block, bias=bias)
    canvases, expected = np.where(where, MASK, EVERY), np.zeros(len(EVERY))
    for low in range(0, LENGTH, block or LENGTH):
        now = where & (np.arange(LENGTH) >= low) & (np.arange(LENGTH) < low + (block or LENGTH))
        expected += joined.at(law_of(canvases, EVERY, extra=np.asarray(bias)), EVERY)[:, now].sum(1)
        canvases = np.where(now, EVERY, canvases)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.exp(found).sum() == pytest.approx(TEXT ** (~where).sum(), rel=1e-5)


@pytest.mark.slow
def test_draws_have_the_law_and_one_forward_each():
    number = 6000
    found = decode(MODEL, NET, blank(MASK, number, LENGTH), RULE, seed=1)
    law = np.exp(joined.at(law_of(np.full_like(EVERY, MASK), EVERY), EVERY).sum(1))
    counts = np.bincount(np.asarray(found.tokens) @ TEXT ** np.arange(LENGTH)[::-1], minlength=len(EVERY))
    assert (np.abs(counts / number - law) / np.sqrt(law * (1 - law) / number)).max() < 4.5
    assert found.calls == 1 and (np.asarray(found.forwards) == 1).all()


def test_rows_neither_see_the_batch_nor_their_padding_and_greedy_takes_the_likeliest():
    tokens = np.full((3, 6), MASK, np.int32)
    tokens[0, :3], tokens[1, [0, 4]] = [0, 2, 1], [2, 1]
    segment = np.ones((3, 6), np.int32)
    segment[0, 4:] = segment[2, :2] = 0
    together = canvas(tokens, (tokens == MASK) & (segment > 0), segment=segment)
    for rule in (RULE, replace(RULE, temperature=0.0)):
        found = np.asarray(decode(MODEL, NET, together, rule, seed=4).tokens)
        assert (found[np.asarray(together.editable)] != MASK).all()
        for row in (0, 2):
            here = segment[row] > 0
            alone = canvas(tokens[row : row + 1, here], tokens[row : row + 1, here] == MASK, first_row=row)
            np.testing.assert_array_equal(decode(MODEL, NET, alone, rule, seed=4).tokens[0], found[row, here])
    whole = found[1:2]  # greedy, and without padding
    likeliest = law_of(tokens[1:2], whole)[0].argmax(-1)
    np.testing.assert_array_equal(whole[0], np.where(tokens[1] == MASK, likeliest, tokens[1]))


def test_at_first_logits_are_the_mean_of_the_networks():
    """Also of a twin whose head is its table, and with ids for which it has no column."""
    tied = replace(joined.TWIN_NETWORK, tied=True)
    narrow = replace(joined.TWIN_NETWORK, head_size=2, head_bias=True)
    for network, twin in ((replace(NETWORK, head_size=3), tied), (replace(NETWORK, head_bias=False), narrow)):
        params = [joined.weights(joined.api.abstract(one), seed) for seed, one in enumerate((network, twin))]
        tokens = jnp.asarray(EVERY[:5])
        first, logits = joined.said(network, params[0], tokens)
        second, other = joined.said(twin, params[1], jnp.asarray(joined.before(EVERY[:5])), True)
        fresh = fused.averaged(FusedConfig(network, twin), *params)
        found = fused.prediction(fresh, first, second).logits()
        both = min(logits.shape[-1], other.shape[-1])
        expected = np.concatenate([(logits[..., :both] + other[..., :both]) / 2, logits[..., both:]], -1)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_numbers_are_leaves():
    assert jax.tree.structure(RULE) == jax.tree.structure(replace(RULE, temperature=0.5, top_p=0.9))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="fused=None: MARIA needs a head that was trained on two networks"):
        MARIA(mask_id=MASK)
    short = Twin({}, replace(joined.TWIN_NETWORK, learned_positions=2), MASK)
    for rule, options, message in (
        (RULE, {"guidance": 1.0}, "guidance=1.0: the head reads one network's hidden states"),
        (RULE, {"steps": 2}, "steps=2: MARIA takes as many as it needs"),
        (RULE, {"block_length": 2, "cache": "prefix"}, "cache='prefix': MARIA looks beyond the block"),
        (replace(RULE, fused=replace(HEAD, twin=short)), {}, "twin: learned 2 positions, and the row has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(MODEL, NET, blank(MASK, 2, LENGTH, np.array([1])), rule, **options)
    with pytest.raises(ValueError, match="its own joint is what it writes"):
        to_own_joint(MODEL, NET, blank(MASK, 2, LENGTH), RULE, steps=None)


def test_what_a_decoder_holds_beside_the_network_is_counted():
    """Head and twin, whose tables are not the network's, and the twin's cache, twice."""
    own = sum(leaf.nbytes for leaf in jax.tree.leaves((HEAD.params, TWIN.params)))
    plain, found = (memory.need(MODEL, NET, rule, rows=3, slots=0, length=LENGTH)
                    for rule in (LowConfidence(MASK), RULE))
    assert found.parameters == plain.parameters + own + HEAD.bias.nbytes * (HEAD.bias is not NET["head_bias"])
    assert found.cache == 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(TWIN.cache(3, LENGTH)))


def test_positions_cannot_be_split_under_it():
    mesh = make_mesh({"fsdp": 4, "context": 2})
    params = jax.device_put(NET, api.shardings(NETWORK, mesh))
    with pytest.raises(ValueError, match="mesh: context=2 splits positions, and MARIA has a twin write token by token"):
        decode(MODEL, params, blank(MASK, 4, LENGTH), RULE, mesh=mesh)
