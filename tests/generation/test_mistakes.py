"""What generate, infill and stream refuse, and that they do so before anything is compiled."""

from pathlib import Path

import numpy as np
import pytest

from mdlm_jax.sampling import program
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.generation.models import MASK, tokens_model

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3]]


@pytest.fixture(scope="module")
def model():
    return tokens_model()


@pytest.mark.parametrize(("prompts", "options", "message"), [
    ([], {}, "prompts: there are none"),
    ([PROMPTS[0]] * 2, {"row_ids": [1]}, "row_ids: must be 2 whole numbers"),
    ("text", {}, "prompt: is text, and the model's files hold no tokenizer.json"),
    ([[1, 2], [1, 12]], {}, r"prompts\[1\]: holds the id 12; ids must lie in 0..11"),
    ([[1, MASK]], {}, r"prompts\[0\]: holds the mask, 11; call infill"),
    ([[1.5, 2.0]], {}, r"prompts\[0\]=\[1.5, 2.0\]: must be a string, or whole numbers"),
    ([[1] * 64], {"new_tokens": None}, r"prompts\[0\]: 64 tokens and 1 new ones do not fit.*max_length=65"),
    ([[1] * 60], {"new_tokens": 5}, r"prompts\[0\]: 60 tokens and 5 new ones do not fit max_length=64"),
    (PROMPTS, {"num": 2}, "num=2: there is no such option; answer has it"),
    ([[1], [{"role": "user", "content": "hi"}]], {}, r"prompts\[1\]: is a conversation; give .*chat.prompt"),
    ([{"role": "user", "content": "hi"}], {}, "prompts: is a conversation"),
    ({"role": "user", "content": "hi"}, {}, "prompts: is a conversation"),
    (Path("prompts.txt"), {}, r"prompts=.*: is a path; give the text, as prompts.read_text\(\) does"),
    ([[1], "a\ud800"], {}, r"prompts\[1\]: holds half a character, '\\ud800', at 1; give"),
    (PROMPTS, {"label": 3}, "class=3: the network was trained without classes; leave label"),
    (PROMPTS, {"new_tokens": 0}, "new_tokens=0: must be a whole number of at least 1"),
    (PROMPTS, {"new_tokens": 20, "block_length": 8, "steps": 10}, "steps=10: must be a multiple of the 3 blocks of 8 "
     "tokens.*9 or 12"),
    (PROMPTS, {"steps": 0}, "steps=0: must be a whole number of at least 1"),
    (PROMPTS, {"block_length": -1}, "block_length=-1"),
    (PROMPTS, {"batch_size": 0}, "batch_size=0"),
    (PROMPTS, {"seed": -1}, "seed=-1"),
    (PROMPTS, {"temprature": 0.5}, "temprature=0.5: there is no such option; did you mean temperature.*ancestral has"),
    (PROMPTS, {"decoder": "ancestrel"}, "decoder='ancestrel': choose one of ancestral"),
    (PROMPTS, {"decoder": "ancestral", "remasking": "random"}, "remasking='random'.*the decoder ancestral has temp"),
    (PROMPTS, {"decoder": LowConfidence(MASK), "temperature": 1.0}, "given as an object has its numbers already"),
    (PROMPTS, {"temperature": -1.0}, "temperature=-1.0: must be 0"),
    (PROMPTS, {"temperature": "hot"}, "temperature='hot': must be of type float"),
    (PROMPTS, {"top_p": 1.5}, r"top_p=1.5: must lie in \(0, 1\]"),
    (PROMPTS, {"cache": "prefix"}, "cache='prefix': works block after block; give block_length"),
    (PROMPTS, {"cache": "block", "block_length": 8}, "cache='block': is for block_causal and causal networks"),
    (PROMPTS, {"cache": "fast"}, "cache='fast': choose one of none, prefix"),
    (PROMPTS, {"grid": "cubic"}, "grid='cubic': choose one of uniform, cosine"),
    ([[1], np.zeros(0, int)], {"guidance": 1.0}, r"prompts\[1\]: is empty, and guidance=1.0"),
    (PROMPTS, {"stop": "x"}, "stop: looks for strings, and the model's files hold no tokenizer.json"),
    (PROMPTS, {"stop_id": 12}, "stop_id=12: must be an id of the head, 0..11"),
    (PROMPTS, {"suppress": [-1]}, "suppress=-1: must be an id of the head"),
    (PROMPTS, {"suppress": range(11)}, "bias, suppress: must leave an id to be written"),
    (PROMPTS, {"bias": {1: float("nan")}}, "bias, suppress: must leave an id to be written, and be numbers"),
    (PROMPTS, {"bias": [1.0]}, r"bias=\[1.0\]: must be a dict of nats by id"),
    (PROMPTS, {"bias": {3: "x"}}, "bias: 'x' for the id 3; must be nats, a number"),
    (PROMPTS, {"suppress": 3}, "suppress=3: must be a list of ids"),
    (PROMPTS, {"stop": 3}, "stop=3: must be a list of strings"),
    (PROMPTS, {"stop_id": "end"}, "stop_id='end': must be an id of the head"),
    (PROMPTS, {"row_ids": 5}, "row_ids=5: must be a list of whole numbers"),
    (PROMPTS, {"decoder": 5}, "decoder=5: must be a name, one of ancestral, .* or a decoder"),
    (PROMPTS, {"decoder": "copula", "twin": "runs/ar"}, r"twin='runs/ar': .*; give mdlm_jax.load\('runs/ar'\)"),
    (PROMPTS, {"guidance": "a"}, "guidance='a': must be a finite number of at least 0"),
    (PROMPTS, {"guidance": float("nan")}, "guidance=nan: must be a finite number of at least 0"),
    (PROMPTS, {"guidance": -1.0}, "guidance=-1.0: must be a finite number of at least 0"),
    (None, {}, "prompts=None: must be a string, a row of token ids, or a list of those"),
])
def test_mistakes_are_met_before_anything_is_compiled(model, prompts, options, message, monkeypatch):
    monkeypatch.setattr(program, "block", None)
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, **{"new_tokens": 8} | options)


@pytest.mark.parametrize(("attention", "family", "prompts", "options", "message"), [
    ("causal", "llama", [np.zeros(0, int)], {}, r"prompts\[0\]: is empty, and this network scores a token"),
    ("causal", "", PROMPTS, {"block_length": 4}, "block_length=4: a causal network writes one token after another"),
    ("causal", "llama", PROMPTS, {"guidance": 0.5}, "guidance=0.5: masks the prompt, which a causal network reads as"),
    ("permutation", "", PROMPTS, {"cache": "block"}, "and causal networks, and this one is permutation; use none$"),
    ("permutation", "", PROMPTS, {"guidance": 0.5}, "guidance=0.5: masks the prompt, which a permutation network"),
    ("permutation", "", PROMPTS, {"decoder": "assd", "cache": "dual"}, "cache='dual': is for bidirectional "
     "networks, and this one is permutation; use none$"),
    ("causal", "", PROMPTS, {"decoder": "copula", "twin": tokens_model("causal")},
     "contract='causal': Copula joins a network that sees both sides with the twin"),
    ("permutation", "", PROMPTS, {"block_length": 0}, "block_length=0: a permutation network writes one token"),
    ("block_causal", "", PROMPTS, {"block_length": 0}, "block_length=0: the network attends in blocks of 4"),
    ("block_causal", "", PROMPTS, {"block_length": 6}, "blocks of 6 must be whole blocks of the network, 4"),
    ("block_causal", "", PROMPTS, {"cache": "dual"}, "cache='dual': is for bidirectional networks"),
])
def test_networks_that_do_not_fit(attention, family, prompts, options, message):
    size = {"block_length": 4} if attention == "block_causal" else {}
    with pytest.raises(ValueError, match=message):
        tokens_model(attention, family, **size).generate(prompts, new_tokens=8, **options)


@pytest.mark.parametrize(("texts", "options", "message"), [
    ([[1, 2]], {}, r"texts\[0\]: has no hole; write <mask> for each token wanted"),
    ([[1, MASK, 99]], {}, r"texts\[0\]: holds the id 99"),
    ([], {}, "texts: there are none"),
    ([1, MASK], {"stop_id": 3}, "stop, stop_id: holes have their length already"),
    ([1, MASK], {"hole": ""}, "hole='': must be a string"),
    ([MASK, MASK], {"guidance": 1.0}, "text: is all holes, and guidance=1.0"),
])
def test_texts_with_holes_are_checked(model, texts, options, message):
    with pytest.raises(ValueError, match=message):
        model.infill(texts, **options)


def test_holes_need_a_network_that_looks_both_ways():
    for attention, how in (("causal", {}), ("permutation", {"decoder": "margin"}), ("block_causal", {})):
        with pytest.raises(ValueError, match=f"infill: a {attention} network does not see what stands right of a hole"):
            tokens_model(attention).infill([1, MASK, 2], **how)


@pytest.mark.parametrize(("options", "message"), [
    ({"every": "token"}, "every='token': choose block or step"),
    ({"batch_size": 2}, "batch_size=2: 4 rows are to be streamed together"),
    ({"cache": "foo"}, "cache='foo': choose one of"),
    ({"grid": "foo"}, "grid='foo': choose one of"),
    ({"decoder": "first_hitting", "steps": 4}, "steps=4: one by one, the 8 tokens of a block take as many steps"),
    ({"new_tokens": None, "max_length": 20}, "new_tokens: rows with room for different numbers of tokens"),
])
def test_streams_are_checked_at_once(options, message, model):
    with pytest.raises(ValueError, match=message):
        model.stream(PROMPTS, **{"new_tokens": 8} | options)
