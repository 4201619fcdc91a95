"""PRISM's steps against plain numpy, over blocks too, with a real head beside a real network, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, quality
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.quality import QualityConfig, QualityHead
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.p2 import P2
from mdlm_jax.sampling.prism import PRISM
from tests.sampling.registry import Opinion
from tests.sampling.test_p2 import ID, LENGTH, PARAMS, PROCESS, prompted, timeless

RULE = PRISM(Opinion("prism"), ID, remask=2, order="confidence", temperature=0.0)


def twin(given, steps, block, remask):
    """Every state of plain numpy, of rows whose blocks all begin at 0."""
    tokens, editable = np.array(given.tokens), np.asarray(given.editable)
    frames = [tokens.copy()]
    for low in range(0, LENGTH, block):
        inside = editable & (np.arange(LENGTH) >= low) & (np.arange(LENGTH) < low + block)
        first = ((tokens == ID) & inside).sum(1)
        for step in range(steps):
            logits = np.array(timeless(PARAMS, jnp.asarray(tokens), jnp.zeros(len(tokens))).hidden, np.float64)
            odds = np.asarray(RULE.quality.logits(jnp.asarray(tokens), jnp.asarray(logits, jnp.float32),
                                                  positions=np.arange(LENGTH)))
            logits[..., ID] = -np.inf
            log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
            before = tokens.copy()
            for row in np.flatnonzero(inside.any(1)):
                masks = [i for i in np.flatnonzero(inside[row]) if before[row, i] == ID]
                written = [i for i in np.flatnonzero(inside[row]) if before[row, i] != ID]
                later = sum(first[row] // steps + (s < first[row] % steps) for s in range(step + 1, steps))
                for i in sorted(masks, key=lambda i: -log_p[row, i].max())[: max(len(masks) - later, 0)]:
                    tokens[row, i] = log_p[row, i].argmax()
                if step + 1 < steps:
                    for i in sorted(written, key=lambda i: odds[row, i])[:remask]:
                        tokens[row, i] = ID
            frames.append(tokens.copy())
    return frames


@pytest.mark.parametrize(("steps", "blocks", "remask"), [(5, 1, 2), (20, 1, 1), (4, 3, 3), (5, 1, 0)])
def test_steps_are_those_of_numpy(steps, blocks, remask):
    """Also more steps than tokens: what goes back is drawn anew to the end."""
    given = dataclasses.replace(prompted(), start=jnp.zeros(4, jnp.int32))
    block = LENGTH // blocks
    options = {"block_length": block} if blocks > 1 else {}
    found = decode(timeless, PARAMS, given, dataclasses.replace(RULE, remask=remask), steps=steps * blocks, trace=True,
                   **options)
    expected = twin(given, steps, block, remask)
    np.testing.assert_array_equal(found.trace[-1], expected[-1])
    assert (found.trace[-1] != ID).all()
    for frame, wanted in zip(found.trace[1 : steps + 1], expected[1 : steps + 1], strict=True):
        np.testing.assert_array_equal(frame, wanted)
    back = ((found.trace[:-1] != ID) & (found.trace[1:] == ID)).any()
    assert back == (remask > 0)


NETWORK = TransformerConfig(6, 6, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24)


def weights(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.standard_normal(leaf.shape), jnp.float32), tree)


NET = weights(api.abstract(NETWORK), 0)


def head(kind, layers=1):
    config = QualityConfig(NETWORK, kind, layers)
    return QualityHead(weights(quality.abstract(config), 2), NET["embedding"], config)


def rows():
    tokens = np.full((3, 8), 5, np.int32)
    tokens[0, :2], tokens[1, :1] = [2, 0], [1]
    segment = np.where(np.arange(8) < np.array([[6], [8], [8]]), 1, 0)
    return canvas(tokens, (tokens == 5) & (segment > 0), segment=segment)


@pytest.mark.parametrize("make", [
    lambda: PRISM(head("prism"), 5, remask=2),
    lambda: P2(dataclasses.replace(PROCESS, vocab_size=6, mask_id=5), "trained", quality=head("planner", 2)),
], ids=["prism", "p2"])
def test_a_real_head_does_not_see_the_batch_nor_the_padding(make):
    together, decoder = rows(), make()
    found = np.asarray(decode(Denoiser(NETWORK), NET, together, decoder, steps=4, seed=7).tokens)
    editable = np.asarray(together.editable)
    assert (found[editable] != 5).all()
    np.testing.assert_array_equal(found[~editable], np.asarray(together.tokens)[~editable])
    alone = canvas(np.asarray(together.tokens)[:1, :6], editable[:1, :6])
    np.testing.assert_array_equal(decode(Denoiser(NETWORK), NET, alone, decoder, steps=4, seed=7).tokens[0],
                                  found[0, :6])


def test_numbers_are_leaves():
    assert jax.tree.structure(RULE) == jax.tree.structure(dataclasses.replace(RULE, remask=5, temperature=1.0))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: PRISM(None, ID), "quality=None: PRISM needs what train.objective=prism:1 trained"),
    (lambda: PRISM(Opinion("planner"), ID), "quality=planner: PRISM needs what train.objective=prism:1 trained"),
    (lambda: P2(PROCESS, "trained"), "quality=None: P2 needs what train.objective=planner:1"),
    (lambda: P2(PROCESS, "trained", quality=Opinion("prism")), "quality=prism: P2 needs what train.objective=planner"),
    (lambda: PRISM(Opinion("prism"), ID, remask=-1), "remask=-1: must be a whole number"),
    (lambda: PRISM(Opinion("prism"), ID, remask=0.5), "remask=0.5: must be a whole number"),
    (lambda: PRISM(Opinion("prism"), ID, order="left"), "order='left': choose one of random, confidence"),
])
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_that_do_not_fit_are_named():
    for options, message in (({"guidance": 1.0}, "guidance=1.0: the head reads one network's hidden states"),
                             ({"block_length": 4, "cache": "dual"}, "cache='dual': PRISM looks beyond the block"),
                             ({"steps": None}, "steps=None: PRISM goes by them")):
        with pytest.raises(ValueError, match=message):
            decode(Denoiser(NETWORK), NET, rows(), PRISM(head("prism"), 5), **{"steps": 4} | options)
