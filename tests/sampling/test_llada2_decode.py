"""LLaDA2's decoders: every state of the reference's runs on a tiny checkpoint, with the exact cache and without."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.hf import families, reader
from mdlm_jax.sampling import registry
from mdlm_jax.sampling.block_threshold import BlockThreshold
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.joint_threshold import MODES, JointThreshold
from mdlm_jax.sampling.loop import decode
from tests.models.hf.support import GOLDEN
from tests.sampling.looks import look_of

RUNS = np.load(GOLDEN / "llada2_decode.npz")
SETTINGS = json.loads((GOLDEN / "llada2_decode.json").read_text())
JOINT = np.load(GOLDEN / "sglang_joint.npz")
MASK, LENGTH = 255, 32
# dInfer runs twice after its last look at the masks, so two of its forwards find none; with its cache two store keys.
OF_USE = {"dinfer_bd_nocache": 12 - 2, "dinfer_bd_kvcache": 14 - 2 - 2}


@functools.cache
def network(block_length: int):
    described = families.describe(GOLDEN / "llada2_ckpt")
    config = dataclasses.replace(described.config, dtype="float32", attention="block_causal", block_length=block_length)
    return Denoiser(config), reader.read(GOLDEN / "llada2_ckpt", described, dtype="float32")


def decoder_of(name: str):
    case = SETTINGS[name]
    if name.startswith("l21"):
        fields = {key: case[key] for key in ("num_to_transfer", "max_post_steps") if key in case}
        return JointThreshold(MASK, case["threshold"], case["editing_threshold"], **fields)
    return BlockThreshold(MASK, threshold=case["threshold"], early_stop=case.get("eos_early_stop", False))


def replay(name: str, cache: str, decoder=None, **options):
    """The case with everything padded to one length, so that cases share programs; its trace unpadded."""
    case, states = SETTINGS[name], RUNS[f"{name}_states"]
    prompt, length, size = case["prompt_len"], states.shape[-1], case["block_length"]
    tokens = np.full((1, LENGTH), MASK, np.int32)
    tokens[:, :prompt] = RUNS[f"{name}_prompt"]
    index = np.arange(LENGTH)[None]
    given = canvas(tokens, (index >= prompt) & (index < length), segment=index < length)
    stops = name.startswith("l20") or case.get("eos_early_stop")
    each = size if name.startswith("dinfer") else case["steps"]
    steps = each * (length // size - prompt // size)
    rule = decoder or decoder_of(name)
    options |= {"steps": steps} if rule.reads_steps else {}
    model, params = network(size)
    with jax.default_matmul_precision("highest"):
        return decode(model, params, given, rule, block_length=size, cache=cache,
                      stop_id=case["eos_id"] if stops else None, **options)


def assert_same_states(name: str, found) -> None:
    case, states = SETTINGS[name], RUNS[f"{name}_states"]
    if name in OF_USE:
        states = states[np.r_[True, (states[1:] != states[:-1]).any((1, 2))]]
    trace = found.trace[:, :, : states.shape[-1]]
    np.testing.assert_array_equal(trace[:-1], states[:-1])
    settled = states[-1] != MASK  # a row that stops early is filled with its stop token, which the reference cuts off
    np.testing.assert_array_equal(trace[-1][settled], states[-1][settled])
    text = trace[-1, 0, case["prompt_len"] :][: case["gen_length"]]
    if name.startswith("dinfer"):  # its output leaves the stop tokens out, the prompt not
        text = np.concatenate([states[0, 0, : case["prompt_len"]], trace[-1, 0, case["prompt_len"] :]])
        text = text[text != case["eos_id"]]
    else:
        stop = np.flatnonzero(text == case["eos_id"])
        text = text[: stop[0] + 1] if len(stop) else text
    np.testing.assert_array_equal(text, RUNS[f"{name}_output"][0])


def by_cost(name: str, cache: str):
    """Programs are shared by cases of one block length, one decoder and one cache; those of few cases are slow ones."""
    few = SETTINGS[name]["block_length"] != 8 or cache == "none"
    return pytest.param(name, cache, marks=pytest.mark.slow if few else ())


@pytest.mark.parametrize("name, cache", [by_cost(name, cache) for name in SETTINGS for cache in ("none", "block")])
def test_every_state_of_the_references_runs(name, cache):
    found = replay(name, cache, trace=True)
    assert_same_states(name, found)
    assert int(found.forwards[0]) == found.calls == OF_USE.get(name, SETTINGS[name]["n_forward"])


# The rule -------------------------------------------------------------------------------------------------------------


def look_at(tokens: np.ndarray, prompt: int, step: int):
    """A block of 8 that is the whole canvas of one row."""
    return look_of(tokens[None], 19, steps=1, step=step, editable=np.arange(8)[None] >= prompt)


@pytest.mark.parametrize("name, decoder", [
    ("joint_speed", JointThreshold.mode("speedy", 19, max_post_steps=6)),
    ("joint_quality", JointThreshold.mode("quality", 19)),
    ("joint_penalty3", JointThreshold.mode("speedy", 19, max_post_steps=5, penalty=3.0)),
])
def test_the_steps_of_a_serving_engine(name, decoder):
    """SGLang's step function on recorded logits: a prompt of 2 in a block of 8. It ends with forwards to store keys."""
    states, logits = JOINT[f"{name}_states"], JOINT[f"{name}_logits"]
    state = decoder.begin(look_at(states[0], 2, 0), None)
    step = jax.jit(decoder.update)
    for number, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        look = look_at(before, 2, number)
        move, state = step(Prediction.from_logits(jnp.asarray(logits[number])[None]), look, state)
        tokens = np.where((move.write & look.editable)[0], move.tokens[0], before)
        np.testing.assert_array_equal(tokens, after)
        if bool(decoder.done(look_at(tokens, 2, number), state)[0]):
            break
    assert (states[number + 1 :] == states[number + 1]).all()
    assert number + 1 <= decoder.limit(jnp.int32(1), 8)
    assert len(logits) - (number + 1) == {"joint_speed": 2, "joint_quality": 1, "joint_penalty3": 2}[name]


def test_modes_by_name():
    assert MODES == {"quality": (0.7, 0.5), "speedy": (0.5, 0.0)}
    speedy = JointThreshold.mode("speedy", MASK, max_post_steps=3)
    assert (speedy.threshold, speedy.edit_threshold, speedy.max_post_steps) == (0.5, 0.0, 3)
    assert JointThreshold(MASK) == JointThreshold(MASK, 0.7, 0.5) == JointThreshold.mode("quality", MASK)
    process = Process(256, MASK)
    assert registry.make("joint_speedy", process=process, numbers={"max_post_steps": 3}) == speedy
    assert registry.make("joint_threshold", process=process, numbers={}) == JointThreshold(MASK)
    assert registry.make("block_threshold", process=process, numbers={"threshold": 1}).threshold == 1.0


@pytest.mark.parametrize("make, message", [
    (lambda: JointThreshold.mode("fast", MASK), "mode='fast': choose one of quality, speedy"),
    (lambda: JointThreshold(MASK, threshold=1.5), r"threshold=1.5: must lie in \[0, 1\]"),
    (lambda: JointThreshold(MASK, edit_threshold=-0.1), "edit_threshold=-0.1"),
    (lambda: JointThreshold(MASK, num_to_transfer=0), "num_to_transfer=0: must be at least 1"),
    (lambda: JointThreshold(MASK, max_post_steps=-1), "max_post_steps=-1"),
    (lambda: JointThreshold(MASK, reach=0), "reach=0: must be at least 1"),
    (lambda: BlockThreshold(MASK, threshold=-1.0), "threshold=-1.0"),
    (lambda: BlockThreshold(MASK, top_p=0.0), "top_p=0.0"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
