"""ReMDM: the published posteriors, chains multiplied out, the true law in the limit, and bounds on sigma."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import truncation
from mdlm_jax.core.draws import Drawn
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, Linear, Polynomial
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.decoder import Look
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.remdm import ReMDMCap, ReMDMConf, ReMDMLoop, ReMDMRescale
from tests.core.support import Reference, assert_law
from tests.core.toy import MASK, MASKED
from tests.marks import slow_unless
from tests.sampling import tabulated

# The reference's arrays -----------------------------------------------------------------------------------------------

LINEAR = Linear(0.0)


def look(t, s, tokens, mask_id, left: int = 9) -> Look:
    """What a decoder sees with ``left`` steps to go after this one."""
    rows, width = tokens.shape
    none = jnp.zeros((rows,), jnp.int32)
    everywhere = jnp.ones((rows, width), bool)
    index = jnp.broadcast_to(jnp.arange(width), (rows, width))
    times, shares = ([jnp.full((rows,), x) for x in both] for both in ((t, s), (1.0, 0.0)))
    return Look(jnp.asarray(tokens), everywhere, everywhere, index, index, none, jnp.int32(1 + left), none, *times,
                *shares, none, jax.random.split(jax.random.key(0), rows), None, jnp.int32(-1), None, mask_id)


def posterior(decoder, t, s, tokens, probs, state=None):
    """sigma [B, W], 0 at masks, and the posterior [B, W, V] of a step."""
    chances = decoder.chances(look(t, s, tokens, decoder.mask_id), state)[..., None]
    masked = (tokens == decoder.mask_id)[..., None]
    is_mask = jnp.arange(probs.shape[-1]) == decoder.mask_id
    sigma, reveal = jnp.where(masked, 0.0, chances), jnp.where(masked, chances, 0.0)
    return sigma[..., 0], jnp.where(masked, reveal * probs + (1 - reveal) * is_mask,
                                    (1 - sigma) * probs + sigma * is_mask)


def rules(golden, process):
    """Name in the arrays -> decoder."""
    return {
        "cap": ReMDMCap(process, eta=float(golden["eta_cap"])),
        "rescale": ReMDMRescale(process, eta=float(golden["eta_rescale"])),
        "loop": ReMDMLoop(process, eta=float(golden["eta_loop"]), t_on=float(golden["t_on"]),
                          t_off=float(golden["t_off"]), alpha_on=float(golden["alpha_on"])),
        "conf": ReMDMConf(process),
    }


@pytest.mark.parametrize("rule", ["cap", "rescale", "loop", "conf"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_published_posteriors(rule, dtype):
    """loop: outside its phase the arrays are weights times 1 - alpha and of masks only; they are normalised here.

    Two of its steps are left out: the tenth crosses t_on, where the published code reveals more than the time says, the
    last crosses t_off, where it stays at alpha_on and leaves the rest to an argmax.
    """
    with jax.enable_x64(dtype == "float64"):
        golden = Reference("diffusion_remdm", dtype)
        tokens, probs = golden["xt"], jnp.asarray(golden["subs_probs"])
        decoder = rules(golden.arrays, Process(12, int(golden["mask_id"]), 0.0, LINEAR))[rule]
        psi = jnp.asarray(np.where(np.isfinite(golden["conf_in_bf16"]), -golden["conf_in_bf16"], 0.0))
        for step, t in enumerate(golden.arrays["t"]):
            s = t - float(golden.arrays["dt"])
            sigma, found = posterior(decoder, np.asarray(t, dtype), np.asarray(s, dtype), tokens, probs, psi)
            expected = golden.arrays[f"q_remdm_{rule}"][step]
            where = np.ones(tokens.shape, bool)
            if rule == "loop" and t > decoder.t_on:
                expected, where = expected / expected.sum(-1, keepdims=True), tokens == decoder.mask_id
                if s < decoder.t_on:
                    continue
            elif rule == "loop" and s < decoder.t_off:
                continue
            else:
                golden.compare(f"sigma_remdm_{rule}", sigma if rule == "conf" else sigma.max(), select=step)
            np.testing.assert_allclose(np.asarray(found)[where], expected[where], rtol=0, atol=golden.tolerance)


def test_published_nucleus():
    golden = Reference("diffusion_remdm", np.float32)
    kept = truncation.top_p(jnp.log(golden["nucleus_in_probs"]), 0.9, keep_crossing=ReMDMCap(MASKED).keep_crossing)
    golden.compare("nucleus0p9_probs", jax.nn.softmax(kept))


def test_what_conf_remembers():
    """The reference's buffer after a step is minus the probability of what was drawn; masks have none."""
    golden = Reference("diffusion_remdm", np.float32)
    tokens, probs = golden["xt"], golden["subs_probs"]
    drawn = (golden.arrays["q_remdm_conf"].argmax(-1) != golden["mask_id"]) & (tokens == golden["mask_id"])  # [20, ...]
    assert drawn.any()
    decoder = ReMDMConf(Process(12, int(golden["mask_id"]), 0.0, LINEAR))

    drawn_there = Drawn(sample_log_prob=jnp.log(probs.max(-1)))
    for step in range(20):
        psi = decoder.after(jnp.asarray(drawn[step]), drawn_there, jnp.asarray(-golden["conf_in_bf16"]))
        golden.compare("conf_out", -psi, drawn[step], select=step)
    assert (decoder.begin(look(0.5, 0.4, tokens, 11), None) == 1).all()


# The law --------------------------------------------------------------------------------------------------------------


def enumerated(steps: int, sigma_of, warp=lambda t: t) -> np.ndarray:
    """[64]: the law of the toy's chain, by products of 64 x 64 matrices. ``sigma_of(t, most)``; alpha = 1 - warp(t)."""
    law = np.eye(64)[tabulated.START]
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        alpha, after = 1 - warp(t), 1 - warp(s)
        sigma = sigma_of(t, min(1.0, (1 - after) / alpha) if alpha > 0 else 1.0)
        reveal = (after - (1 - sigma) * alpha) / (1 - alpha)
        assert -1e-12 < reveal < 1 + 1e-12

        tokens, mask = tabulated.TOY.states[..., None], np.eye(4)[MASK]
        visible = (1 - sigma) * np.eye(4)[tabulated.TOY.states] + sigma * mask
        law = law @ tabulated.after(np.where(tokens == MASK, reveal * tabulated.PROBS + (1 - reveal) * mask, visible))
    return np.where(law < 1e-12, 0.0, law)


LOOP = {"t_on": 0.6, "t_off": 0.3, "alpha_on": 0.7}


def looped(t):
    if t > LOOP["t_on"]:
        return 1 - (1 - t) * LOOP["alpha_on"] / (1 - LOOP["t_on"])
    return (1 - LOOP["alpha_on"]) * min(t / LOOP["t_off"], 1.0)


CHAINS = {
    "cap": (lambda eta: ReMDMCap(MASKED, eta=eta), lambda t, most, eta: min(eta, most), lambda t: t),
    "rescale": (lambda eta: ReMDMRescale(MASKED, eta=eta), lambda t, most, eta: eta * most, lambda t: t),
    "loop": (lambda eta: ReMDMLoop(MASKED, eta=eta, **LOOP),
             lambda t, most, eta: min(eta, most) if LOOP["t_off"] < t <= LOOP["t_on"] else 0.0, looped),
}
SLOW_CHAINS = slow_unless(["cap", "rescale", "loop"], "cap")


def law_of(rule: str, steps: int, eta: float) -> tuple[np.ndarray, float]:
    """Of the toy's chain, and its total variation from the true law."""
    law = enumerated(steps, functools.partial(CHAINS[rule][1], eta=eta), CHAINS[rule][2])
    return law, np.abs(law - tabulated.TOY.joint).sum() / 2


@pytest.mark.parametrize("rule", SLOW_CHAINS)
def test_samples_follow_the_enumerated_chain(rule):
    """Chi-square of 30 000 rows: a few bold steps, far from the true law, and 60 small ones, which are close to it."""
    for steps, eta, far in ((7, 0.4, True), (60, 2 / 60, False)):
        law, away = law_of(rule, steps, eta)
        assert away > 0.08 if far else away < 0.02
        assert_law(tabulated.states(CHAINS[rule][0](eta), steps), law)


@pytest.mark.parametrize("rule", CHAINS)
def test_how_many_steps_lead_to_the_true_law(rule):
    """eta = 4 / N: the distance falls as 1 / N. Constant eta: as its root, or, in the loop, not at all."""
    falling = [law_of(rule, n, 4 / n)[1] for n in (100, 200, 400)]
    constant = [law_of(rule, n, 0.3)[1] for n in (100, 200, 400)]
    ratios, slow = (np.divide(away[:-1], away[1:]) for away in (falling, constant))
    assert falling[-1] < 0.005 and ((ratios > 1.8) & (ratios < 2.2)).all()
    assert ((slow > 1.3) & (slow < 1.5)).all() or (rule == "loop" and constant[-1] > 0.05)


# Bounds ---------------------------------------------------------------------------------------------------------------

VOCAB, ID, LENGTH = 11, 10, 12
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))
SCHEDULES = [LINEAR, Linear(1e-3), Linear(1e-4, 1e-4), Cosine(0.0), Polynomial(0.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_moves_are_allowed_at_every_step(schedule):
    """0 <= sigma <= sigma_max, and what masks do follows from it, at float64's word; at the end all are revealed."""
    process = Process(VOCAB, ID, 0.0, schedule)
    tokens = np.where(np.arange(LENGTH) % 3 == 0, ID, 5)[None].astype(np.int32)
    masked = tokens[0] == ID
    decoders = [rule(process, eta=eta) for rule in (ReMDMCap, ReMDMRescale, ReMDMLoop) for eta in (0.0, 0.04, 1.0)]
    decoders += [ReMDMConf(process), ReMDMLoop(process, eta=1.0, t_on=0.99, t_off=0.9, alpha_on=0.5)]
    for decoder in decoders:
        state = decoder.begin(look(0.5, 0.4, tokens, ID), None)
        for steps in (1, 3, 1000):
            grid = np.linspace(1, 0, steps + 1, dtype=np.float32)
            for i in {0, 1, steps // 2, steps - 2, steps - 1} & set(range(steps)):
                seen = look(grid[i], grid[i + 1], tokens, ID, left=steps - 1 - i)
                chances = np.asarray(decoder.chances(seen, state), np.float64)[0]
                assert (chances >= 0).all() and (chances <= 1).all()
                sigma = chances[~masked]
                if i + 1 == steps:
                    assert (sigma == 0).all() and (chances[masked] == 1).all()
                    continue
                with jax.enable_x64(True):
                    t, s = (decoder.time(jnp.asarray(x, jnp.float64)) for x in (grid[i], grid[i + 1]))
                    alpha, sooner = (float(schedule.alpha(x)) for x in (t, s))
                assert (sigma * alpha <= 1 - sooner + 1e-6).all()
                given = 0.0 if isinstance(decoder, ReMDMConf) else sigma[0]
                expected = (sooner - (1 - given) * alpha) / (1 - alpha)
                np.testing.assert_allclose(chances[masked], np.clip(expected, 0, 1), atol=1e-5)


def around(params, tokens, time):
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1) + time[:, None, None] * params[0])


@pytest.mark.parametrize("rule", ["conf", *(pytest.param(rule, marks=pytest.mark.slow) for rule in CHAINS)])
def test_tokens_are_taken_back_and_the_rest_stays(rule):
    process = Process(VOCAB, ID, 0.0, LINEAR)
    decoder = {"conf": ReMDMConf(process), "cap": ReMDMCap(process, eta=1.0), "rescale": ReMDMRescale(process, eta=1.0),
               "loop": ReMDMLoop(process, eta=0.5)}[rule]
    tokens = np.full((4, LENGTH), ID, np.int32)
    tokens[:, :3], tokens[1, 6:], tokens[2, 9] = [3, 1, 4], 5, 7
    editable = tokens == ID
    editable[2, 9] = True  # a draft: it may go
    for steps in (1, 30):
        found = decode(around, PARAMS, canvas(tokens, editable), decoder, steps=steps, trace=steps > 1, seed=3)
        result = np.asarray(found.tokens)
        np.testing.assert_array_equal(result[~editable], tokens[~editable])
        assert (result != ID).all() and found.calls == steps and (np.asarray(found.forwards) == steps).all()
    frames = found.trace
    assert (frames[:, ~editable] == tokens[~editable]).all()
    back = (frames[:-1] != ID) & (frames[1:] == ID)
    exchanged = (frames[:-1] != ID) & (frames[1:] != ID) & (frames[:-1] != frames[1:])
    assert back[:, editable].any() and not exchanged.any() and not back[-1].any()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ReMDMCap(Process(4, 3, 0.1)), "mixing=0.1: remasking needs the masked process"),
    (lambda: ReMDMCap(MASKED, eta=1.5), r"eta=1.5: must lie in \[0, 1\]; 0 takes nothing back"),
    (lambda: ReMDMRescale(MASKED, eta=-0.1), r"eta=-0.1: must lie in \[0, 1\]"),
    (lambda: ReMDMLoop(MASKED, t_on=0.2, t_off=0.3), "t_off=0.3: must be less than t_on=0.2"),
    (lambda: ReMDMLoop(MASKED, alpha_on=1.0), "alpha_on=1.0: must lie between 0 and 1"),
    (lambda: decode(around, PARAMS, blank(ID, 1, 4), ReMDMCap(MASKED), steps=0), "steps=0: must be at least 1"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
