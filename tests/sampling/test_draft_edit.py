"""LLaDA-XDLM's decoder against its code's own runs, and what it leaves alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.draft_edit import DraftEdit
from mdlm_jax.sampling.loop import decode
from tests.marks import slow_unless

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "diffusion_llada_xdlm_generate.npz")
MASK, PROMPT, ROWS, LENGTH = int(GOLDEN["mask_id"]), 5, 2, 21
PARAMS = {name: jnp.asarray(GOLDEN[name], jnp.float32) for name in ("emb", "pos", "W")}
TOKENS = np.full((ROWS, LENGTH), MASK, np.int32)
TOKENS[:, :PROMPT] = GOLDEN["prompt"]
RUNS = [(int(steps), int(block), float(k)) for steps, block, k in GOLDEN["runs_steps_block_k"]]


def toy(params, tokens, time):
    """The golden runs' network: every position sees its own token, its place, and the mean of all tokens."""
    del time
    seen = params["emb"][tokens]
    hidden = seen + params["pos"][: tokens.shape[1]] + seen.mean(1, keepdims=True)
    return Prediction.from_logits(hidden @ params["W"])


def tag(steps, block, k):
    return f"s{steps}_b{block}_k{str(k).replace('.', 'p')}"


def run(decoder, steps, block, editable=None, start=None, **options):
    editable = TOKENS == MASK if editable is None else editable
    with jax.default_matmul_precision("highest"):
        return decode(toy, PARAMS, canvas(TOKENS, editable, start=start), decoder, steps=steps, block_length=block,
                      **options)


@pytest.mark.parametrize("steps, block, k", RUNS, ids=lambda value: str(value))
def test_every_state_of_the_references_runs(steps, block, k):
    found = run(DraftEdit(MASK, k, reference=True), steps, block, np.ones(TOKENS.shape, bool), PROMPT, trace=True)
    name = tag(steps, block, k)
    np.testing.assert_array_equal(found.trace, np.concatenate([GOLDEN[f"x_in_{name}"], GOLDEN[f"x_out_{name}"][None]]))
    assert list(np.asarray(found.forwards)) == [steps] * ROWS


def test_the_reference_edits_prompts_only_where_the_canvas_says_so():
    steps, block, k = RUNS[-1]
    assert (GOLDEN[f"x_out_{tag(steps, block, k)}"][:, :PROMPT] != GOLDEN["prompt"]).any()
    found = run(DraftEdit(MASK, k, reference=True), steps, block)
    np.testing.assert_array_equal(np.asarray(found.tokens)[:, :PROMPT], GOLDEN["prompt"])


def quotas(masks, steps, k):
    """What the decoder may draft and edit at each step, from its own functions, nothing being left over."""
    decoder, step = DraftEdit(MASK, k), np.arange(steps)

    class Step:
        first_masks, steps = jnp.full(step.shape, masks), jnp.int32(len(step))

    edits = decoder._edits(Step, jnp.asarray(step)) - decoder._edits(Step, jnp.asarray(step) - 1)
    return np.asarray(edits)


@pytest.mark.parametrize("name", [name for name in GOLDEN.files if name.startswith("t2t_")])
def test_quotas(name):
    masks, steps, k = (float(part[1:].replace("p", ".")) for part in name.split("_")[1:])
    masks, steps = int(masks), int(steps)
    np.testing.assert_array_equal(quotas(masks, steps, k), GOLDEN[name])
    each = masks // steps + (np.arange(steps) < masks % steps)
    np.testing.assert_array_equal(each, GOLDEN[f"m2t_n{masks}_s{steps}"])


def twin(steps, block, k):
    """The rule in numpy, float64, kept to the block and without the mask; frames and forwards of one row at a time."""
    params = {name: GOLDEN[name] for name in ("emb", "pos", "W")}
    rows, used = TOKENS.copy(), np.zeros(ROWS, int)
    for row, low in ((r, lo) for r in range(ROWS) for lo in range(PROMPT, LENGTH, block)):
        per_block, left, total, before = steps * block // (LENGTH - PROMPT), 0, 0, 0
        for step in range(per_block):
            seen = params["emb"][rows[row]]
            logits = (seen + params["pos"] + seen.mean(0)) @ params["W"]
            logits[:, MASK] = -np.inf
            probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            used[row] += 1
            x = rows[row, low : low + block]
            p = probs[low : low + block]
            draft, own, current = p.argmax(1), p.max(1), p[np.arange(block), x]
            take = block // per_block + (step < block % per_block)
            total += take
            now = int(np.float32(total) * np.float32(k / (1 - k))) if step else 0
            left, before = left + now - before, now
            masked = np.flatnonzero(x == MASK)
            other = np.flatnonzero((x != MASK) & (draft != x) & (own >= current))
            edited = other[np.argsort(-own[other], kind="stable")][:left]
            chosen = np.concatenate([masked[np.argsort(-own[masked], kind="stable")][:take], edited])
            left -= len(edited)
            rows[row, low + chosen] = draft[chosen]
            if not left and (rows[row, low : low + block] != MASK).all():
                break
    return rows, used


@pytest.mark.parametrize("steps, block, k", slow_unless(RUNS[-2:], RUNS[-1]), ids=lambda value: str(value))
def test_a_plain_loop_says_the_same_where_blocks_are_kept(steps, block, k):
    found, (tokens, forwards) = run(DraftEdit(MASK, k), steps, block), twin(steps, block, k)
    np.testing.assert_array_equal(np.asarray(found.tokens), tokens)
    np.testing.assert_array_equal(np.asarray(found.forwards), forwards)


def test_edits_happen_and_stay_inside_the_block():
    steps, block, k = 8, 8, 0.5
    found = run(DraftEdit(MASK, k), steps, block, trace=True)
    edited = (found.trace[:-1] != MASK) & (found.trace[1:] != found.trace[:-1])
    assert edited.any() and not edited[:, :, :PROMPT].any()
    assert (edited.sum(0).sum(1) <= 2 * block).all() and (np.asarray(found.tokens) != MASK).all()
    later = (found.trace[:, :, PROMPT + block :] != MASK).any(2)
    for row in range(ROWS):  # once the second block has begun, the first one is as it will be
        assert not edited[later[:-1, row], row, : PROMPT + block].any()


@pytest.mark.parametrize("mixing, name", [(0.1, "fp_noisy"), (0.0, "fpm_noisy")])
def test_the_noise_it_was_trained_with(mixing, name):
    """The reference's uniforms, cut at the masses of our process, give its noisy tokens."""
    process = Process(int(GOLDEN["vocab_size"]), MASK, mixing, Linear(eps_noise=0.0, eps_data=1e-3))
    masses = process.masses(GOLDEN["fp_t"])
    np.testing.assert_allclose(masses.keep[:, 0], GOLDEN["fp_alpha_t"], rtol=1e-6)
    np.testing.assert_allclose(masses.noise[:, 0], GOLDEN["fpm_p_mask"][:, 0], rtol=1e-6)
    uniform = GOLDEN["fp_rand"]
    if mixing:
        noisy = np.where(uniform < masses.keep + masses.uniform, GOLDEN["fp_ids"], MASK)
        noisy = np.where(uniform < masses.keep, GOLDEN["fp_x"], noisy)
    else:  # their masked process masks where the number is small
        noisy = np.where(uniform < masses.noise, MASK, GOLDEN["fp_x"])
        np.testing.assert_array_equal(noisy == MASK, GOLDEN["fpm_mask"])
    np.testing.assert_array_equal(noisy, GOLDEN[name])


def test_without_mixing_nothing_is_edited():
    found = run(DraftEdit(MASK, 0.0), 8, 8, trace=True)
    written = found.trace[:-1] != MASK
    np.testing.assert_array_equal(found.trace[1:][written], found.trace[:-1][written])


@pytest.mark.parametrize("fields, message", [
    ({"mixing": 1.0}, r"mixing=1.0: must lie in \[0, 1\)"), ({"mixing": -0.1}, "mixing=-0.1"),
    ({"temperature": -1.0}, "temperature=-1.0"),
])
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        DraftEdit(MASK, **fields)
