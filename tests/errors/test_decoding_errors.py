"""Mistakes with models, decoders and objectives, own ones among them: the message says what, its value and the remedy.

The key of a case is a part of its message.
"""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Geometric
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.errors import ConfigError
from mdlm_jax.generation.generate import MASK_TEXT
from mdlm_jax.models.config import RopeConfig
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser, as_model
from mdlm_jax.sampling import own, registry
from mdlm_jax.sampling.ancestral import Ancestral, LearnedScheduleAncestral
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.decoder import Decoder, Move, Plan, decoder, static, take_best
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.training.objectives.any_order import AnyOrderObjective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.continuous import DiscreteObjective
from mdlm_jax.training.objectives.levenshtein import LevenshteinObjective
from tests.errors.form import faults
from tests.generation.models import EOS, MASK, VOCAB, bytes_model, tokens_model
from tests.training import tiny

MODEL, CAUSAL = tokens_model(), tokens_model("causal")
PROMPT = [3, 1, 4]
STREAMS = dataclasses.replace(tiny.NETWORK, attention="two_stream")
BYTES = bytes_model()


def generate(model=MODEL, prompts=PROMPT, **options):
    return model.generate(prompts, new_tokens=4, **options)


def network(shape=(1, 8, VOCAB), given=Prediction.from_logits):
    """A model of logits of a shape that does not depend on the tokens."""
    return lambda params, tokens, time: given(jnp.zeros(shape))


def decoded(rule, denoise=None, **options):
    row = blank(mask_id=MASK, rows=1, length=8, prompt=PROMPT)
    return decode(denoise or network(), None, row, rule, **{"steps": 5} | options)


def plan(**fields) -> Plan:
    usual = dict(contract="bidirectional", shifted=False, learned=False, steps=4, block_length=4, tokens=4, columns=9,
                 blocks=1, cache="none", prompted=True, padding=True, timed=False, pooled=False, backend="xla",
                 guidance=0.0, forced=False, grid=False)
    return Plan(**usual | fields)


def ruled(name: str, **given) -> Decoder:
    joint = types.SimpleNamespace(most=4, scope="row")
    return registry.make(name, process=MODEL.process, numbers={}, **{"joint": joint, "twin": 1, "causal": 1} | given)


def confident(shape, dtype=bool) -> Decoder:
    """A rule whose ``reveal`` gives an array of its own shape."""
    @decoder
    class Mine(ByConfidence):
        def reveal(self, drawn, look):
            return jnp.ones(shape, dtype)

    return Mine(MASK)


def updating(given) -> Decoder:
    @decoder
    class Whole(LowConfidence):
        def update(self, prediction, look, state):
            return given(super().update(prediction, look, state)[0])

    return Whole(MASK)


def made(base=ByConfidence, **members) -> Decoder:
    """An object of a class ``Mine`` with these members; ``fields``: types and defaults of its own fields."""
    fields = members.pop("fields", {} if base is ByConfidence else {"mask_id": (int, static())})
    notes = {name: kind for name, (kind, _) in fields.items()}
    defaults = {name: value for name, (_, value) in fields.items() if value is not None}
    cls = decoder(type("Mine", (base,), {"__annotations__": notes, "reveal": best} | defaults | members))
    return cls(mask_id=MASK) if "mask_id" in {field.name for field in dataclasses.fields(cls)} else cls()


def best(self, drawn, look):
    return take_best(drawn.top_log_prob, look.masked, look.due)


def unsure(self, drawn, look):
    return take_best(-drawn.entropy, look.masked, look.due)


def idle(self, drawn, look):
    return jnp.zeros_like(look.masked)


def everywhere(token):
    return lambda self, prediction, look, state: (Move(look.masked, jnp.full_like(look.tokens, token)), state)


class Undecorated(LowConfidence):
    pass


CASES = {
    # what people write themselves
    "Mine.reveal: gives bool[8] for write; it must be of type bool and shape [1, 8]": lambda: decoded(confident(8)),
    "Mine.reveal: gives bool[1, 1] for write": lambda: decoded(confident((1, 1))),
    "Mine.reveal: gives int32[1, 8] for write": lambda: decoded(confident((1, 8), jnp.int32)),
    "Mine.reveal: gives bool[] for write": lambda: generate(decoder=confident(())),
    "Whole.update: gives Move; it must give a Move and the state": lambda: decoded(updating(lambda move: move)),
    "Whole.update: gives float32[1, 8] for tokens": lambda: decoded(updating(
        lambda move: (dataclasses.replace(move, tokens=move.tokens * 1.0), None))),
    "Whole.reveal: gives NoneType for write": lambda: decoded(updating(lambda move: (Move(None, move.tokens), None))),
    "Whole.update: gives bool[1] for remask": lambda: decoded(updating(
        lambda move: (dataclasses.replace(move, remask=move.write[:, 0]), None))),
    "Whole.update: gives the state int32[]; it must be as that of begin, None": lambda: decoded(updating(
        lambda move: (move, jnp.int32(1)))),
    "Mine: left 5 masks in row 0; reveal must take at least look.due at each step": lambda: decoded(made(reveal=idle)),
    "Mine: left 4 masks in row 0; reveal must": lambda: generate(decoder=made(reveal=idle)),
    "Mine: left 5 masks in row 0; update must have written them all by the last step": lambda: decoded(made(
        Decoder, update=lambda self, prediction, look, state: (Move(look.masked & False, look.tokens), state))),
    "Mine.update: writes the id 12; Move.tokens must lie in 0..11": lambda: generate(
        decoder=made(Decoder, update=everywhere(VOCAB))),
    "Mine.update: writes the id -3; Move.tokens must lie in 0..11": lambda: generate(
        decoder=made(Decoder, update=everywhere(-3))),
    "Mine.update: writes the id -3; Move.tokens must not": lambda: decoded(made(Decoder, update=everywhere(-3))),
    f"decoder: Mine writes over the mask None, and the model has {MASK}": lambda: generate(
        decoder=dataclasses.replace(made(), mask_id=None)),
    "Mine.mask_id='11': must be the id of the mask": lambda: decoded(dataclasses.replace(made(), mask_id="11")),
    "decoder=Mine: has no mask_id; give it the field mask_id: int = static()": lambda: generate(
        decoder=made(Decoder, fields={}, update=everywhere(1))),
    "decoder=Mine: has no rule; give it update(self, prediction, look, state)": lambda: generate(decoder=made(Decoder)),
    "decoder=Mine: has no rule; give it reveal(self, drawn, look)": lambda: generate(
        decoder=made(reveal=ByConfidence.reveal)),
    "Mine.wants='entropy': must be a tuple of names": lambda: generate(decoder=made(wants="entropy")),
    "Mine.wants: 'topprob' is nothing that is computed; did you mean 'top_log_prob'": lambda: generate(
        decoder=made(wants=("topprob",))),
    "Mine.wants: 3 is nothing that is computed; choose of sample, ": lambda: generate(decoder=made(wants=(3,))),
    "Mine.reveal: reads drawn.entropy, which was not computed; add 'entropy' to wants": lambda: generate(
        decoder=made(reveal=unsure)),
    "Mine.mode='even': is no number; give one, or mark the field static()": lambda: generate(
        decoder=made(fields={"mode": (str, "even")})),
    "Mine.temperature='0.5': is no number": lambda: generate(decoder=dataclasses.replace(made(), temperature="0.5")),
    "Mine.names=[1]: is static() and cannot be hashed; give a tuple": lambda: generate(decoder=dataclasses.replace(
        made(fields={"names": (tuple, static(()))}), names=[1])),
    "temperature=-1.0: must be 0 (greedy) or positive": lambda: dataclasses.replace(made(), temperature=-1.0),
    "decoder=LowConfidence: is a class; give an object of it": lambda: decoded(LowConfidence),
    f"decoder=LowConfidence: is a class; give an object of it, as in LowConfidence(mask_id={MASK})": lambda: generate(
        decoder=LowConfidence),
    "decoder='margin': must be an object": lambda: decoded("margin"),
    "decoder=Undecorated: its class is no pytree; put @": lambda: decoded(Undecorated(MASK)),
    "<lambda>: gives ": lambda: decoded(LowConfidence(MASK), network(given=lambda logits: logits)),
    "<lambda>: gives a prediction of shape [8, 12]; it must be [1, 8, ids]": lambda: decoded(
        LowConfidence(MASK), network((8, VOCAB))),
    "<lambda>: gives a prediction of shape [1, 9, 12]": lambda: decoded(LowConfidence(MASK), network((1, 9, VOCAB))),
    "denoise=3: must be a function": lambda: decoded(LowConfidence(MASK), 3),
    # what calls are given
    "prompts[0]=b'abc': is bytes; give text, as prompts[0].decode() does": lambda: BYTES.generate([b"abc"]),
    "prompts=b'abc': is bytes": lambda: BYTES.generate(b"abc"),
    "mesh='fsdp:1': must be a mesh; give models.sharding.make_mesh(config.parse_mesh('fsdp:1'))": lambda: mdlm_jax.load(
        "x", mesh="fsdp:1"),
    "mesh=3: must be a mesh": lambda: mdlm_jax.load("x", mesh=3),
    "prompts={}: is a dict; give a string": lambda: BYTES.generate({}),
    "output=3: must be the name of a file": lambda: BYTES.answer(["a"], 3),
    "new_tokens=4: holes have their length already": lambda: MODEL.infill([MASK, 1], new_tokens=4),
    f"decoder: LowConfidence writes over the mask {MASK + 1}, and the model has {MASK}": lambda: generate(
        decoder=LowConfidence(MASK + 1)),
    "stop=3: must be a string": lambda: generate(BYTES, "a", stop=[3]),
    "stop: holds an empty string": lambda: generate(BYTES, "a", stop=""),
    "process: has no mask": lambda: generate(dataclasses.replace(MODEL, process=Process(VOCAB, None, 1.0))),
    "steps=4: WINO takes as many": lambda: generate(decoder="wino", steps=4),
    "model.attention='two_stream': is for training": lambda: generate(tokens_model("two_stream")),
    "twin: is read by the decoder copula alone, and decoder='margin'": lambda: generate(decoder="margin", twin=CAUSAL),
    "twin: is a published llama": lambda: generate(decoder="copula", twin=tokens_model("causal", "llama")),
    "twin: has another tokenizer": lambda: generate(decoder="copula", twin=dataclasses.replace(
        CAUSAL, description=dataclasses.replace(CAUSAL.description, mask_id=EOS))),
    "twin: lies on the mesh": lambda: generate(decoder="copula", twin=dataclasses.replace(
        CAUSAL, params=jax.device_put(CAUSAL.params, jax.sharding.NamedSharding(
            jax.sharding.Mesh(jax.devices(), "x"), jax.sharding.PartitionSpec())))),
    "text: begins with a hole": lambda: tokens_model("permutation", "x", logit_shift=True).infill(
        [MASK, 1], decoder="assd"),
    "prompt: ": lambda: dataclasses.replace(MODEL, tokenizer=LanguageTokenizer(EOS)).generate("words"),
    "prompt: 3 tokens and 4 new ones do not fit the 6 positions": lambda: generate(tokens_model(
        rope=RopeConfig(theta=0.0), learned_positions=6)),
    "row_ids: 1 for 2 pairs": lambda: MODEL.log_likelihood([PROMPT] * 2, [PROMPT] * 2, row_ids=[1]),
    "tokens: have shape [0, 3]": lambda: MODEL.logits(np.zeros((0, 3), int)),
    # decoders, canvases and blocks
    "top_k=-1: must not be negative": lambda: LowConfidence(MASK, top_k=-1),
    "defer=(1.5,): must hold whole numbers": lambda: registry.check("low_confidence", {"defer": (1.5,)}),
    "tokens [1, 2] and editable [2, 1]": lambda: canvas([[1, 2]], [[True], [True]]),
    "guidance=1.0: the joint layer": lambda: ruled("adjust").check(plan(guidance=1.0)),
    "cache='dual': this joint layer": lambda: ruled("adjust").check(plan(cache="dual")),
    "guidance=2.0: the joint layer": lambda: ruled("adjust_verified").check(plan(guidance=2.0)),
    "moe.block: positions share": lambda: ruled("copula").check(plan(pooled=True)),
    "decoder: WINO runs on shadows of tokens, which a network that attends": lambda: ruled("wino").check(
        plan(backend="splash")),
    "LearnedScheduleAncestral: reads the powers": lambda: decoded(LearnedScheduleAncestral(MODEL.process)),
    "block_length=0: must be at least 1": lambda: decoded(LowConfidence(MASK), block_length=0),
    "block_length=6: the network attends in blocks of 4": lambda: decoded(
        LowConfidence(MASK), Denoiser(tokens_model("block_causal", block_length=4).config), block_length=6),
    "cache='block': CausalDenoiser keeps none": lambda: decoded(
        LowConfidence(MASK), CausalDenoiser(CAUSAL.config, MASK), block_length=1, cache="block"),
    "block_length=2: a causal network": lambda: decoded(
        LowConfidence(MASK), Denoiser(CAUSAL.config), block_length=2, cache="block"),
    "Foreign: takes tokens and times alone": lambda: decode(network(), None, canvas(
        [[MASK] * 8], [[True] * 8], segment=[[1] * 8]), LowConfidence(MASK), steps=4),
    # objectives
    "must take two streams with blocks of one token": lambda: AnyOrderObjective(tiny.NETWORK, tiny.process()),
    "process, complementary: must be masked": lambda: BlockObjective(STREAMS, tiny.process(0.5)),
    "leaves noise at t=0": lambda: DiscreteObjective(tiny.NETWORK, dataclasses.replace(
        tiny.process(), schedule=Geometric())),
    "half_head, both, confidence: every position": lambda: LevenshteinObjective(
        STREAMS, tiny.process(), half_head=True),
    "edit_weight=1.0, turns=0: need": lambda: LevenshteinObjective(STREAMS, tiny.process(), turns=0),
    "network.head_size=13: needs two columns": lambda: LevenshteinObjective(STREAMS, tiny.process()),
}


@pytest.mark.parametrize("said", CASES)
def test_the_message_says_what_is_wrong_and_the_remedy(said):
    with pytest.raises(ValueError) as caught:
        CASES[said]()
    assert said in str(caught.value) and not faults(str(caught.value)), str(caught.value)


@pytest.mark.parametrize("given", [
    lambda: made(reveal=idle), lambda: made(reveal=unsure), lambda: made(wants="entropy"),
    lambda: made(Decoder, update=everywhere(-3)), lambda: dataclasses.replace(made(), temperature=-1.0),
])
def test_a_rule_of_ones_own_fails_as_a_named_one_does(given):
    with pytest.raises(ConfigError):
        generate(decoder=given())


def test_what_is_said_in_another_way_is_no_mistake():
    same = decoded(made(wants=["top_log_prob"])).tokens
    assert (same == decoded(made()).tokens).all()
    one = updating(lambda move: (Move(move.write, jnp.int32(2)), None))
    assert (decoded(one).tokens[0, 3:] == 2).all()
    own.check(dataclasses.replace(made(), mask_id=None))  # of noise that has none

    static_fields = {field.name for field in dataclasses.fields(LowConfidence) if field.metadata.get("static")}
    numbers = {field.name for field in dataclasses.fields(LowConfidence)} - static_fields

    @functools.partial(jax.tree_util.register_dataclass, data_fields=sorted(numbers),
                       meta_fields=sorted({"mode", *static_fields}))
    @dataclasses.dataclass(frozen=True)
    class Registered(LowConfidence):
        mode: str = "x"

    own.check(Registered(MASK))


def test_a_mistake_in_a_rule_keeps_its_own_words():
    """A TypeError that no missing field explains."""
    with pytest.raises(TypeError, match="must be real number"):
        decoded(made(reveal=lambda self, drawn, look: math.sin("x")))
    with pytest.raises(AttributeError, match="has no attribute 'mask'"):
        decoded(made(Decoder, update=lambda self, prediction, look, state: look.mask))


def test_masks_may_be_left_where_it_is_said_and_behind_the_end():
    assert (decoded(made(reveal=idle, partial=True)).tokens[0, 3:] == MASK).all()
    ends = bytes_model({"eos": 0.0})  # writes nothing but the end
    own = dataclasses.replace(made(), mask_id=ends.process.mask_id)
    (found,) = ends.generate(["x"], new_tokens=8, steps=8, block_length=4, decoder=own)
    assert found.finish == "eos" and len(found.tokens) == 0 and found.forwards < 8
    seen = [one.text for one in ends.stream("x", new_tokens=4, steps=4, stop_id=None, every="step", decoder=own)]
    assert seen[0].count("░") == 4 and "░" not in seen[-1]
    letters = bytes_model()
    stopped = letters.generate("x", new_tokens=8, steps=8, block_length=2, stop=["a", "b"], decoder=own)
    assert stopped.finish == "stop" and MASK_TEXT not in stopped.text and (stopped.row == own.mask_id).any()


def test_what_is_right_is_taken():
    """What the checks above must let through: a rule that reads times, a function of any kind, a model, a rule without
    numbers."""
    own.check(registry.make("free_dave", process=MODEL.process, numbers={}))
    assert as_model(Denoiser(MODEL.config)) == Denoiser(MODEL.config)
    run = decoded(Ancestral(MODEL.process))
    assert (run.tokens[0, :3] == jnp.array(PROMPT)).all() and (run.tokens != MASK).all()
