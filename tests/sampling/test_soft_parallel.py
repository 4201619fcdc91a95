"""Soft parallel decoding against a plain loop: what is fed, what is written, when a block ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.soft_parallel import SoftParallel
from tests.marks import slow_unless

VOCAB, MASK, WIDTH, LENGTH, ROWS = 7, 5, 4, 12, 24
RNG = np.random.default_rng(0)
TABLE, KERNEL = (RNG.standard_normal(s).astype(np.float32) for s in ((VOCAB, WIDTH), (WIDTH, VOCAB)))


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Logits from what is fed at a position and beside it."""

    contract: str = "bidirectional"
    sharpness: float = 1.0
    shifted = learned = timed = False
    process = None

    def run(self, params, call: Call, cache: None) -> tuple[Prediction, None]:
        x = jnp.asarray(TABLE)[call.tokens] if call.embeddings is None else call.embeddings
        return Prediction(hidden(x), Head(self.sharpness * jnp.asarray(KERNEL))), None


def hidden(x):
    return x + 0.8 * x[:, [1, *range(x.shape[1] - 1)]] + 0.6 * x[:, [*range(1, x.shape[1]), -2]]


def rule(**fields) -> SoftParallel:
    return SoftParallel(MASK, jnp.asarray(TABLE), **fields)


def given(seed=0):
    """Rows with some tokens given, anywhere."""
    rng = np.random.default_rng(seed)
    editable = rng.random((ROWS, LENGTH)) < 0.8
    editable[:, -1] = True
    return canvas(np.where(editable, MASK, rng.integers(0, MASK, editable.shape)), editable)


def fed(written, p, blend):
    """What a written token is read as."""
    others = [v for v in np.argsort(-p, kind="stable") if v != written]
    ids = [written, *others][:blend]
    rest = max(1 - p[ids].sum(), 0.0)
    mixed = p[ids] @ TABLE[ids] + rest * TABLE[MASK]
    norm = p[ids] @ np.linalg.norm(TABLE[ids], axis=1) + rest * np.linalg.norm(TABLE[MASK])
    return mixed / np.linalg.norm(mixed) * norm


def twin(tokens, editable, start, block, threshold, confident, blend, prefix, most, sharpness):
    """One row in plain numpy: (tokens, forwards)."""
    tokens, forwards = tokens.copy(), 0
    for low in range(start, len(tokens), block):
        own = [i for i in range(low, min(low + block, len(tokens))) if editable[i]]
        soft, post, going = {}, 0, bool(own)
        while going:
            x = TABLE[tokens].copy()
            for i, value in soft.items():
                x[i] = value
            said = sharpness * hidden(x[None])[0] @ KERNEL
            said[:, MASK] = -np.inf
            p = np.exp(said - said.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            drawn, sure = p.argmax(-1), p.max(-1)
            forwards += 1
            masks = [i for i in own if tokens[i] == MASK]
            if prefix:
                drafts = masks[: next((n for n, i in enumerate(masks) if sure[i] < threshold), len(masks))] or masks[:1]
            else:
                drafts = [i for i in masks if sure[i] >= threshold] or sorted(masks, key=lambda i: -sure[i])[:1]
            write = drafts + [i for i in own if tokens[i] != MASK]
            changed = any(tokens[i] != drawn[i] for i in write)
            for i in write:
                tokens[i] = drawn[i]
                if blend:
                    soft[i] = fed(drawn[i], p[i], blend)
            post += not masks
            left = any(tokens[i] == MASK for i in own)
            idle = not left and (all(sure[i] >= confident for i in own) or not changed)
            going = not (idle or not left and post >= most)
    return tokens, forwards


@pytest.mark.parametrize(("blend", "prefix", "block", "threshold", "confident", "most", "sharpness"), [
    (1, True, LENGTH, 0.5, 0.9, 8, 2.0), (2, True, 4, 0.4, 0.7, 3, 1.0), (1, False, 5, 0.5, 1.0, 2, 1.0),
    (0, False, 4, 0.0, 0.95, 4, 2.0), (6, True, 12, 0.9, 0.8, 0, 1.5), (1, True, 4, 0.0, 0.6, 5, 1.0)])
def test_it_is_a_plain_loop(blend, prefix, block, threshold, confident, most, sharpness):
    rows = given()
    found = decode(Neighbours(sharpness=sharpness), None, rows, rule(
        blend=blend, prefix=prefix, threshold=threshold, confident=confident, max_post_steps=most),
        block_length=None if block == LENGTH else block)
    tokens, editable, start = (np.asarray(x) for x in (rows.tokens, rows.editable, rows.start))
    rewritten = 0
    for row in range(ROWS):
        expected, forwards = twin(tokens[row], editable[row], 0 if block == LENGTH else start[row], block, threshold,
                                  confident, blend, prefix, most, sharpness)
        np.testing.assert_array_equal(np.asarray(found.tokens)[row], expected)
        assert int(found.forwards[row]) == forwards
        rewritten += forwards > 1
    assert rewritten and (np.asarray(found.tokens) != MASK).all()


def test_a_token_is_fed_with_the_length_that_is_expected_of_it():
    """Of one id: c E[x] + (1 - c) E[mask], as long as c |E[x]| + (1 - c) |E[mask]|; a sure one is E[x] itself."""
    said = np.full((1, 2, VOCAB), -50.0)
    said[0, 0, 2], said[0, 1, [1, 3]], said[..., MASK] = 10.0, (1.0, 0.0), 90.0  # the mask's own share is not counted
    found = np.asarray(rule().blended(Prediction.from_logits(jnp.asarray(said, jnp.float32)), jnp.array([[2, 3]]),
                                      jnp.ones((1, 2), bool)))
    np.testing.assert_allclose(found[0, 0], TABLE[2], rtol=1e-4)
    c = 1 / (1 + np.e)  # of the token written, which need not be the likeliest
    mixed = c * TABLE[3] + (1 - c) * TABLE[MASK]
    assert np.linalg.norm(found[0, 1]) == pytest.approx(
        c * np.linalg.norm(TABLE[3]) + (1 - c) * np.linalg.norm(TABLE[MASK]), rel=1e-5)
    np.testing.assert_allclose(found[0, 1] / np.linalg.norm(found[0, 1]), mixed / np.linalg.norm(mixed), rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Undecided:
    """Says of every position another id whenever it is asked: the one behind what stands there; ``sure`` of it."""

    sure: float
    contract = "bidirectional"
    shifted = learned = timed = False
    process = None

    def run(self, params, call: Call, cache: None) -> tuple[Prediction, None]:
        following = jnp.where(call.tokens == MASK, 0, (call.tokens + 1) % MASK)
        said = jnp.where(jax.nn.one_hot(following, VOCAB, dtype=bool), jnp.log(self.sure),
                         jnp.log((1 - self.sure) / (VOCAB - 2)))
        return Prediction.from_logits(said), None


@pytest.mark.parametrize(("model", "fields", "forwards"), [
    (Undecided(0.95), {}, 1),  # sure of all at once
    (Undecided(0.8), {"max_post_steps": 0}, 1),
    (Undecided(0.8), {"max_post_steps": 5}, 6),  # never sure, never the same
    (Undecided(0.8), {"threshold": 0.85, "max_post_steps": 5}, LENGTH + 5),  # the most that there can be
    (Undecided(0.8), {"confident": 0.8 - 1e-3}, 1),
    (Neighbours(sharpness=0.0), {"threshold": 0.0}, 2),  # the same ids again
], ids=("sure", "no_more", "restless", "limit", "less_sure", "unchanged"))
def test_when_a_block_ends(model, fields, forwards):
    found = decode(model, None, blank(MASK, 2, LENGTH), rule(blend=0, **fields))
    assert np.asarray(found.forwards).tolist() == [forwards] * 2


@pytest.mark.parametrize("attention", slow_unless(["block_causal", "bidirectional"], "block_causal"))
def test_on_a_transformer_by_windows(attention):
    """The exact cache gives the same; approximate ones keep what is given."""
    network = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32, attention=attention,
                                block_length=6 if attention == "block_causal" else 1)
    params = api.init(network, jax.random.key(3))
    params["head"] *= 30.0
    decoder, rows = SoftParallel(MASK, params["embedding"], threshold=0.3), given()
    plain = decode(Denoiser(network), params, rows, decoder, block_length=6)
    for cache in ("block",) if attention == "block_causal" else ("prefix", "dual"):
        found = decode(Denoiser(network), params, rows, decoder, block_length=6, cache=cache)
        tokens = np.asarray(found.tokens)
        assert (tokens[~np.asarray(rows.editable)] == np.asarray(rows.tokens)[~np.asarray(rows.editable)]).all()
        assert (tokens != MASK).all()
        if cache == "block":
            np.testing.assert_array_equal(tokens, plain.tokens)
            np.testing.assert_array_equal(found.forwards, plain.forwards)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: SoftParallel(MASK), "embedding=None: SoftParallel needs the network's table"),
    (lambda: rule(threshold=1.5), r"threshold=1.5: must lie in \[0, 1\]"),
    (lambda: rule(confident=-0.1), "confident=-0.1"),
    (lambda: rule(blend=-1), "blend=-1: must be a whole number"),
    (lambda: rule(max_post_steps=-1), "max_post_steps=-1: must not be negative"),
    (lambda: rule(temperature=-1.0), "temperature=-1.0"),
])
def test_numbers_that_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()


NETWORK = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=4, heads=1, kv_heads=1, d_ff=8)


@pytest.mark.parametrize(("network", "fields", "options", "said"), [
    (NETWORK, {}, {"steps": 4}, "SoftParallel takes as many as it needs; leave them out"),
    (NETWORK, {}, {"guidance": 1.0}, "guidance=1.0: tokens are fed by one law"),
    (NETWORK, {"blend": 7}, {}, "blend=7: the network tells 6 ids apart; take fewer"),
    (dataclasses.replace(NETWORK, attention="causal", logit_shift=True), {}, {"block_length": 1}, "never sees"),
    (NETWORK, {}, {"cache": "dkv_decode", "block_length": 4}, "SoftParallel reads, or writes, tokens that are no"),
    (dataclasses.replace(NETWORK, logit_shift=True), {}, {"cache": "dual", "block_length": 4}, "first token before"),
])
def test_what_does_not_fit_is_refused(network, fields, options, said):
    with pytest.raises(ValueError, match=said):
        decode(Denoiser(network), None, given(), rule(**fields), **options)


def test_a_head_wider_than_the_table_is_refused():
    with pytest.raises(ValueError, match="embedding: has 7 rows, and the head scores 9 ids; give the whole table"):
        rule().blended(Prediction.from_logits(jnp.zeros((1, 2, 9))), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
