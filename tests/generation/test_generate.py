"""Answers to prompts: what a row gets depends on the row alone; where it ends; what can never happen."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.genmd4 import VectorSchedule
from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.generation import generate
from mdlm_jax.generation import options as settings
from mdlm_jax.models import api
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling import program, registry
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.data.test_subword import sentences
from tests.generation.models import EOS, MASK, bytes_model, tokens_model
from tests.marks import slow_unless

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3]]
WANTED = {"new_tokens": 16, "seed": 2, "stop_id": None}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model():
    return tokens_model()


@pytest.fixture(scope="module")
def letters():
    """Draws a and b with equal chances, whatever is around them."""
    return bytes_model()


def tokens_of(found):
    return [one.tokens.tolist() for one in found]


# What a row depends on -----------------------------------------------------------------------------------------------


def test_unequal_prompts_give_what_each_gives_alone(model):
    together = model.generate(PROMPTS, **WANTED)
    assert [len(one.tokens) for one in together] == [16] * 4 and all((one.tokens != MASK).all() for one in together)
    assert [one.row[: len(p)].tolist() for one, p in zip(together, PROMPTS, strict=True)] == PROMPTS
    again = model.generate(PROMPTS, **WANTED, batch_size=3)  # three, and one
    assert tokens_of(again) == tokens_of(together)
    assert [one.forwards for one in again] == [one.forwards for one in together]
    alone = model.generate(PROMPTS[2], **WANTED, row_ids=[2])
    assert alone.tokens.tolist() == together[2].tokens.tolist()
    assert model.generate(PROMPTS[2], **WANTED).tokens.tolist() != alone.tokens.tolist()  # row 0


def test_blocks_of_unequal_prompts_begin_at_their_ends(model):
    greedy = dict(decoder="low_confidence", block_length=8, **WANTED)
    together = model.generate(PROMPTS, **greedy)
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate([prompt], **greedy, row_ids=[i], batch_size=1, trace=True)[0]
        assert alone.tokens.tolist() == together[i].tokens.tolist()
        begun = [frame[len(prompt) + 8 :].tolist() != [MASK] * 8 for frame in alone.trace]
        assert begun == sorted(begun) and sum(begun) == 8  # the second block begins when the first is whole
        assert (alone.trace[begun.index(True)][: len(prompt) + 8] != MASK).all()


@pytest.mark.parametrize("options", slow_unless([{}, {"decoder": "low_confidence", "block_length": 8}], {}))
def test_one_device_and_eight(options, model):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    sharded = dataclasses.replace(model, params=jax.device_put(model.params, api.shardings(model.config, mesh)))
    assert sharded.mesh is not None
    prompts = PROMPTS[:3]  # filled up to four
    assert tokens_of(sharded.generate(prompts, **WANTED, **options)) == tokens_of(
        model.generate(prompts, **WANTED, **options)
    )


def test_prompts_of_a_bucket_share_a_program(model):
    options = dict(decoder="low_confidence", block_length=8, batch_size=4, stop_id=None)
    model.generate(PROMPTS, new_tokens=16, **options)
    before = program.block._cache_size()
    model.generate([[1, 2], [3], [4, 5, 6]], new_tokens=16, temperature=0.5, steps=4, seed=9, **options)
    model.generate([[1] * 8, [3] * 3, [4] * 5, [2] * 2], new_tokens=8, temperature=0.1, steps=2, **options)
    assert program.block._cache_size() == before


def test_rows_with_room_or_holes_of_their_own_take_steps_of_their_own(model):
    given = [[3, MASK, 4], [MASK, 1, MASK, MASK], [5, MASK, 6], [1] * 3 + [MASK] * 7]
    together = model.infill(given, seed=5)
    for i, row in enumerate(given):
        alone = model.infill([row], seed=5, row_ids=[i])[0]
        assert (alone.tokens.tolist(), alone.forwards) == (together[i].tokens.tolist(), together[i].forwards)
    assert generate.infill_job(model, given, "<mask>").each == [1, 3, 1, 7]
    assert generate.infill_job(model, given, "<mask>", block_length=4, steps=4).each == [4, 4, 4, 2]
    prompts = [[1] * 56, [2], [3] * 60]
    together = model.generate(prompts, seed=5, stop_id=None)
    assert [len(one.tokens) for one in together] == [8, 63, 4]
    alone = model.generate(prompts[2:], seed=5, stop_id=None, row_ids=[2])[0]
    assert (alone.tokens.tolist(), alone.forwards) == (together[2].tokens.tolist(), together[2].forwards)


def test_the_same_seed_and_another(model):
    first, again, other = (tokens_of(model.generate(PROMPTS, **(WANTED | {"seed": s}))) for s in (2, 2, 3))
    assert first == again != other


# Where an answer ends ------------------------------------------------------------------------------------------------


def test_text_in_and_text_out(letters):
    one = letters.generate("xyz", new_tokens=16)
    assert set(str(one)) <= {"a", "b"} and len(one.text) == 16 and one.finish == "length"
    assert bytes(one.row.astype(np.uint8)) == b"xyz" + one.text.encode()
    assert one.given.tolist() == [True] * 3 + [False] * 16
    assert [one.text] == [again.text for again in letters.generate(["xyz"], new_tokens=16)]
    assert len(letters.generate("", new_tokens=4).text) == 4  # no prompt at all
    job = generate.answer_job(letters, ["x" * 100, "y"], None)
    assert job.wanted == [28, 127] and generate.answer_job(letters, "x", None, max_length=500).wanted == [128]


def test_stop_strings_cut_and_end(letters):
    options = dict(new_tokens=16, block_length=4, seed=1, decoder="ancestral", steps=8)
    whole = letters.generate(["x"] * 8, **options)
    cut = letters.generate(["x"] * 8, **options, stop=["bbbb", "babab"])
    for one, all_ in zip(cut, whole, strict=True):
        places = [all_.text.find(stop) for stop in ("bbbb", "babab") if stop in all_.text]
        assert one.finish == ("stop" if places else "length")
        assert one.text == all_.text[: min(places, default=16)]
        assert bytes(one.tokens.astype(np.uint8)).decode() == one.text
        if places and min(places) < 8:
            assert one.forwards < all_.forwards and one.row[-1] == letters.process.mask_id  # the rest was not written
    assert {one.finish for one in cut} == {"stop", "length"}


def test_a_row_that_has_ended_is_not_searched_again(letters, monkeypatch):
    """A network that writes token after token would search all of a text for every token of the rows beside it."""
    job, searched = generate.answer_job(letters, ["", ""], 4, stop="b"), []
    monkeypatch.setattr(generate, "_cut", lambda job, i, tokens: searched.append(i) or (None, None, "stop"))
    now = types.SimpleNamespace(canvas=types.SimpleNamespace(tokens=np.zeros((2, 4))), finished=np.array([True, False]))
    assert generate._finish(job, [0, 1])(now).tolist() == [True, True] and searched == [1]


def test_a_stop_string_may_end_inside_a_token():
    """Then the text is cut inside it, and the tokens end with it."""
    model = bytes_model()
    wide = type("Wide", (), {"decode_next": lambda self, ids, before: "".join(chr(i) * 3 for i in ids),
                             "vocab_size": 259, "eos_id": 257, "encode": model.tokenizer.encode})()
    one = dataclasses.replace(model, tokenizer=wide).generate("x", new_tokens=8, stop="ab", seed=5)
    assert one.finish == "stop" and one.text.endswith("aa") and len(one.tokens) == -(-len(one.text) // 3)


def test_text_is_cut_between_characters_and_found_by_halving(letters, monkeypatch):
    tokenizer, calls = letters.tokenizer, []
    answer = tokenizer.encode("a€b" * 300 + "€!" + "ab" * 60)
    job = generate.answer_job(letters, "x", len(answer), stop=["!", "zz"], max_length=2000)
    text = generate._text
    monkeypatch.setattr(generate, "_text", lambda *a: calls.append(1) or text(*a))
    ids, found, finish = generate._cut(job, 0, np.concatenate([tokenizer.encode("x"), answer]))
    assert (found, finish) == ("a€b" * 300 + "€", "stop") and tokenizer.decode(ids) == found and len(calls) < 20
    cut = generate.answer_job(letters, "x", 8, stop="b")
    ids, found, _ = generate._cut(cut, 0, np.concatenate([tokenizer.encode("x"), tokenizer.encode("a€bcde")]))
    assert found == "a€" and ids.tolist() == tokenizer.encode("a€").tolist()


def test_special_tokens_and_several_ids_end():
    """No text shows a special token, so a stop string that is its name must be the token."""
    model = bytes_model({"a": 0.0, "eos": -2.0})
    options = dict(new_tokens=16, block_length=4, steps=16, seed=3)
    by_id = model.generate(["x"] * 8, **options)
    named = model.generate(["x"] * 8, **options, stop_id=None, stop="<|endoftext|>")
    assert [one.text for one in named] == [one.text for one in by_id]
    assert [one.finish for one in named] == [{"eos": "stop"}.get(one.finish, "length") for one in by_id]
    assert {one.finish for one in named} == {"stop", "length"}
    assert min(one.forwards for one in named) < 16  # blocks behind it are not written
    several = model.generate(["x"] * 8, **options, stop_id=[ord("z"), "eos"])
    assert [(one.text, one.finish, one.forwards) for one in several] == [
        (one.text, one.finish, one.forwards) for one in by_id]
    masks = generate.answer_job(model, "x", 4, stop="<|mask|>")
    assert masks.sampler.stop_tokens == ()  # else every unwritten place would end a row
    with pytest.raises(ValueError, match="holds the name of the special token <.endoftext.>, which no text shows"):
        model.generate("x", new_tokens=4, stop="<|endoftext|>\n")


def test_the_end_token_ends():
    model = bytes_model({"a": 0.0, "eos": -3.0})
    found = model.generate(["x"] * 8, new_tokens=16, block_length=4, steps=16)
    assert {one.finish for one in found} == {"eos", "length"}
    for one in found:
        assert one.text == "a" * len(one.tokens) and (one.finish == "length") == (len(one.tokens) == 16)
        if one.finish == "eos":
            block_end = 1 + -(-(len(one.tokens) + 1) // 4) * 4
            assert one.row[1 + len(one.tokens)] == 257 and set(one.row[block_end:]) <= {257}
    assert min(one.forwards for one in found) < 16
    through = model.generate(["x"] * 8, new_tokens=16, block_length=4, steps=16, stop_id=None)
    assert all(one.finish == "length" and len(one.tokens) == 16 for one in through)
    letter = bytes_model().generate(["x"] * 4, new_tokens=8, stop_id=ord("b"))
    assert all(set(one.text) <= {"a"} and one.finish == "eos" for one in letter)


def test_what_is_suppressed_or_favoured(letters):
    assert str(letters.generate("x", new_tokens=8, suppress=[ord("a")])) == "b" * 8
    assert str(letters.generate("x", new_tokens=8, bias={ord("b"): -60.0, ord("c"): 60.0})) == "c" * 8


COMMON = ("ancestral", "low_confidence")
SPECIAL = {"adjust": "a joint layer", "adjust_verified": "a joint layer", "free_dave": "temperature 0",
           "levenshtein": "columns that say delete and insert", "prism": "a quality head", "codd": "a circuit",
           "copula": "a twin", "maria": "a fused head", "assd": "a permutation network"}  # which they need


@pytest.mark.parametrize("name", slow_unless([name for name in registry.DECODERS if name not in SPECIAL], *COMMON))
def test_a_network_that_always_predicts_the_mask_hangs_nothing_and_leaks_nothing(name):
    model = bytes_model({"mask": 30.0, "a": 0.0})
    found = model.generate(["x", "yz"], new_tokens=8, block_length=4, decoder=name, temperature=1.0)
    assert [one.text for one in found] == ["a" * 8] * 2
    assert all(one.forwards <= 64 for one in found)


# Kinds of networks ---------------------------------------------------------------------------------------------------


def test_a_published_causal_network_goes_from_left_to_right():
    model = tokens_model("causal", "llama")
    found = model.generate([[3, 1, 4], [1, 5]], new_tokens=4, stop_id=None)
    for one, prompt in zip(found, [[3, 1, 4], [1, 5]], strict=True):
        row = list(prompt)
        for _ in range(4):
            raw = np.asarray(model.logits(np.array([row + [0] * (8 - len(row))]), raw=True))
            row.append(int(raw[0, len(row) - 1].argmax()))
        assert one.row.tolist() == row and one.forwards == 4


@pytest.mark.parametrize("attention", slow_unless(["causal", "permutation"], "permutation"))
def test_our_own_write_one_token_after_another(attention):
    found = tokens_model(attention).generate(PROMPTS, new_tokens=4, trace=True, stop_id=None)
    for one in found:
        assert [(frame != MASK).sum() - len(one.row) + 4 for frame in one.trace] == [0, 1, 2, 3, 4]


def test_blocks_of_a_block_causal_network_are_whole():
    """Blocks stand at 0, 4, 8, ...: the last is written to its end, as in training, and cut."""
    model = tokens_model("block_causal", block_length=4)
    found = model.generate(PROMPTS, new_tokens=6, stop_id=None, steps=8)
    assert [len(one.row) % 4 for one in found] == [0] * 4 and [len(one.tokens) for one in found] == [6] * 4
    assert tokens_of(found) == tokens_of(model.generate(PROMPTS, new_tokens=6, stop_id=None, steps=8, cache="none"))
    alike = model.generate(PROMPTS[2:3] * 4, new_tokens=6, stop_id=None, steps=8, row_ids=[2, 9, 8, 7], cache="none")
    assert tokens_of(alike)[0] == tokens_of(found)[2]


def test_a_learned_schedule_is_used():
    model = tokens_model(conditioning="time")
    late, early = (
        dataclasses.replace(model, schedule=VectorSchedule().init(12, power)).generate(
            PROMPTS, new_tokens=24, steps=8, trace=True, stop_id=None)
        for power in (0.05, 20.0)
    )
    half = [np.mean([(one.trace[min(3, len(one.trace) - 1)] == MASK).sum() for one in found])
            for found in (late, early)]
    assert half[0] > 16 and half[1] == 0  # half way: 1 - (1/2)^w of the positions


def test_a_learned_schedule_writes_no_id_without_a_name():
    """Of a head that is wider than the tokenizer, so that devices can share it."""
    model = bytes_model({"a": 0.0})
    wide = dataclasses.replace(model.config, vocab_size=264, head_size=264)
    wide = dataclasses.replace(model, description=dataclasses.replace(model.description, config=wide),
                               schedule=jnp.zeros(264))
    found = settings.sampler(wide, settings.Options(), {})
    assert found.denoise.columns == model.tokenizer.vocab_size == 259


def test_learned_positions_hold_whole_blocks():
    model = tokens_model("block_causal", block_length=4, learned_positions=62)
    with pytest.raises(ValueError, match="5 tokens and 57 new ones are 64 in whole blocks of 4, and"):
        model.generate([1, 2, 3, 4, 5], new_tokens=57)
    job = generate.answer_job(model, [1, 2, 3, 4, 5], None)
    assert job.wanted == [55] and len(job.rows[0]) == 60


def test_guidance_leans_towards_the_prompt(model):
    assert tokens_of(model.generate(PROMPTS, **WANTED, guidance=2.0)) != tokens_of(model.generate(PROMPTS, **WANTED))


@pytest.mark.parametrize(("family", "chosen"), [("", "Ancestral"), ("llada", "LowConfidence")])
def test_families_have_their_ways(family, chosen):
    from mdlm_jax.generation.options import Options, sampler

    assert type(sampler(tokens_model(family=family), Options(), {}).decoder).__name__ == chosen


def test_a_decoder_may_be_an_object(model):
    by_name = model.generate(PROMPTS, **WANTED, decoder="low_confidence", block_length=8)
    by_hand = model.generate(PROMPTS, **WANTED, decoder=LowConfidence(MASK), block_length=8)
    assert tokens_of(by_hand) == tokens_of(by_name)


# Holes and streams ---------------------------------------------------------------------------------------------------


def test_holes_are_filled_and_nothing_else(model, letters):
    row = [3, MASK, 4, MASK, MASK, 9]
    one = model.infill(row)
    assert one.tokens[[0, 2, 5]].tolist() == [3, 4, 9] and (one.tokens != MASK).all() and one.forwards <= 3
    rows = [row, [MASK, 1], [1, 2, MASK]]
    several = model.infill(rows, seed=4, steps=3)
    for given, found in zip(rows, several, strict=True):
        assert all(want in (MASK, got) for want, got in zip(given, found.tokens, strict=True))
    assert tokens_of([model.infill(rows[1], seed=4, steps=3, row_ids=[1])]) == tokens_of(several[1:2])
    text = str(letters.infill("x<mask>y<mask><mask>"))
    assert len(text) == 5 and text[0] + text[2] == "xy" and set(text[1] + text[3:]) <= {"a", "b"}
    assert str(letters.infill("<mask>_ü", hole="_"))[:6] == "<mask>" and len(str(letters.infill("_ü", hole="_"))) == 2


def test_holes_change_nothing_that_is_given_and_answers_keep_their_space():
    """With a tokenizer that puts a space before every text and takes one away."""
    tokenizer = sentences("always")
    size = tokenizer.vocab_size
    model = tokens_model(vocab_size=size, head_size=size)
    description = dataclasses.replace(model.description, mask_id=tokenizer.mask_id, eos_id=tokenizer.eos_id)
    process = Process(size, tokenizer.mask_id)
    model = dataclasses.replace(model, tokenizer=tokenizer, process=process, description=description)
    (row,) = generate.infill_job(model, "foo<mask>bar", "<mask>").rows
    assert row.tokens[~row.editable].tolist() == [*tokenizer.encode("foo"), *tokenizer.encode_next("bar")]
    job = generate.answer_job(model, "foo", 2)
    ids, text, _ = generate._cut(job, 0, np.concatenate([tokenizer.encode("foo"), tokenizer.encode(" bar foo")]))
    assert text == " bar foo" and len(ids) == 2
    now = np.array([*tokenizer.encode("foo"), tokenizer.mask_id, *tokenizer.encode("bar")])
    assert generate._cut(job, 0, now)[1] == "░ bar"


@pytest.mark.parametrize("every", ["block", "step"])
def test_a_stream_settles_to_what_generate_gives(every, letters):
    options = dict(new_tokens=8, block_length=4, steps=8, decoder="low_confidence", temperature=1.0)
    frames = list(letters.stream(["x", "yz"], every=every, **options))
    final = letters.generate(["x", "yz"], **options)
    assert [one.text for one in frames[-1]] == [one.text for one in final] and frames[-1][0].finish == "length"
    assert [one.text for one in frames[0]] == ["░" * 8] * 2 and frames[0][0].finish is None
    assert len(frames) == (3 if every == "block" else 9)
    for before, after in zip(frames, frames[1:], strict=False):
        for old, new in zip(before, after, strict=True):
            assert all(a in ("░", b) for a, b in zip(old.text, new.text, strict=True))
    single = list(letters.stream("x", every=every, **options))
    assert [str(one) for one in single] == [frame[0].text for frame in frames]


def test_special_names_in_a_prompt(letters):
    plain = letters.generate("<|endoftext|>x", new_tokens=4)
    special = letters.generate("<|endoftext|>x", new_tokens=4, special=True)
    assert plain.given.sum() == 14 and special.given.sum() == 2 and special.row[0] == 257
    assert EOS == 10 and jnp.asarray(special.row).dtype == jnp.int32


@pytest.mark.parametrize("family", slow_unless(["", "llama"], ""))
def test_keys_and_values_of_a_causal_network_are_kept(family):
    """Token for token as without a cache: unequal prompts, end tokens; of published ones with a temperature too (ours
    begin a place later with a cache, so that their draws are others)."""
    model = tokens_model("causal", family)
    prompts = [[3, 1, 4], [2, 7, 1, 8, 2, 8, 1], [9], *([] if family else [np.zeros(0, int)])]
    options = {"new_tokens": 9, "temperature": 1.0 if family else 0.0, "seed": 5, "stop_id": [0, 8] if family else 2}
    with jax.default_matmul_precision("highest"):
        plain = model.generate(prompts, cache="none", **options)
        kept = model.generate(prompts, cache="block", trace=True, **options)
        usual = model.generate(prompts, **options)
    for a, b, c, prompt in zip(plain, kept, usual, prompts, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() == c.tokens.tolist() and a.finish == b.finish
        np.testing.assert_array_equal(a.row, b.row)
        np.testing.assert_array_equal(a.given, b.given)
        assert b.trace.shape[1] == len(prompt) + 9 and (b.trace[-1] == b.row).all()
    assert any(one.finish == "eos" for one in plain)


def test_a_cache_of_a_causal_network_holds_what_it_read():
    """A forward reads two tokens, the new one and that before it: FLOPs do not grow with what stands before."""
    model = tokens_model("causal", "llama")
    job = generate.answer_job(model, [[1, 2, 3]], 8)
    chosen, canvas = next(generate._batches(job))
    layout = generate._layout(job, canvas)
    assert [layout.program(number).enter.length for number in (1, 5)] == [2, 2]
    with pytest.raises(ConfigError, match="is for bidirectional networks, and this one is causal; use block or none"):
        model.generate([[1, 2]], new_tokens=2, cache="prefix")
