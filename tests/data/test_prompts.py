"""Rows of prompts and answers: the three masks, the end tokens that count, and what is refused."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.packing import make_batch
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.prompts import answer_rows
from mdlm_jax.data.sources import Document
from mdlm_jax.data.tokenizers import ByteTokenizer

PAIRS = [Document("a", "yes", "is it?"), Document("b", "", "say nothing"), Document("c", "x" * 30, "too long"),
         Document("d", "no prompt here", "")]
TOKENIZER = ByteTokenizer()


def expected(document, length, multiple):
    """tokens, attention, noise by hand."""
    prompt, answer = list(document.prompt.encode()), list(document.text.encode())
    used = prompt + answer + [TOKENIZER.eos_id]
    end = length if not multiple else min(length, -(-len(used) // multiple) * multiple)
    tokens = used + [TOKENIZER.eos_id] * (end - len(used)) + [TOKENIZER.pad_id] * (length - end)
    noise = [False] * len(prompt) + [True] * (end - len(prompt)) + [False] * (length - end)
    return tokens, [1] * end + [0] * (length - end), noise


@pytest.mark.parametrize("multiple", [0, 1, 5, 8, 24])
def test_a_row_is_a_prompt_an_answer_and_end_tokens_that_count(multiple):
    rows = answer_rows(PAIRS, TOKENIZER, 24, multiple)
    assert len(rows) == 3  # one does not fit
    batch = make_batch(rows, "prompts", TOKENIZER.eos_id, TOKENIZER.pad_id)
    for row, document in enumerate(PAIRS[:2] + PAIRS[3:]):
        tokens, attention, noise = expected(document, 24, multiple)
        assert batch["tokens"][row].tolist() == tokens
        assert batch["attention_mask"][row].tolist() == attention
        assert batch["noise_mask"][row].tolist() == batch["loss_mask"][row].tolist() == noise
    assert (batch["positions"] == np.arange(24)).all()


def test_a_pair_may_be_one_text():
    whole, parted = (make_batch(answer_rows(PAIRS, TOKENIZER, 24, 8, prompt_loss), "prompts", TOKENIZER.eos_id,
                                TOKENIZER.pad_id) for prompt_loss in (True, False))
    for name in ("tokens", "attention_mask", "positions"):
        np.testing.assert_array_equal(whole[name], parted[name])
    for name in ("noise_mask", "loss_mask"):
        np.testing.assert_array_equal(whole[name], whole["attention_mask"] > 0)


def test_pairs_fit_exactly_or_are_left_out():
    pair = Document("e", "12345", "1234")
    assert len(answer_rows([pair], TOKENIZER, 10, 0)) == 1
    assert len(answer_rows([pair], TOKENIZER, 9, 0)) == 0


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_source_of_pairs(tmp_path, ending):
    path = tmp_path / f"pairs{ending}"
    lines = "".join(json.dumps({"q": f"what is {n}?", "a": f"it is {n}"}) + "\n" for n in range(200))
    with (gzip.open if ending.endswith("gz") else open)(path, "wt") as file:
        file.write(lines + json.dumps({"q": "long " * 20, "a": "x"}) + "\n")
    config = DataConfig(source=str(path), text_field="a", prompt_field="q", length=32)
    built = build(config, 8)
    splits = [built.info[split] for split in ("train", "valid")]
    assert sum(s["rows"] for s in splits) == 200 and sum(s["too_long"] for s in splits) == 1
    batch = built.train.batch(0)
    for row in range(8):
        tokens, noise = batch["tokens"][row], batch["noise_mask"][row]
        assert bytes(tokens[~noise].astype(np.uint8)).startswith(b"what is ")
        answer = tokens[noise]
        assert bytes(answer[answer < 256].astype(np.uint8)).startswith(b"it is ")
        assert (answer[answer >= 256] == built.tokenizer.eos_id).all() and noise[-1]
    shorter = build(dataclasses.replace(config, answer_multiple=8), 8)
    assert shorter.train.fingerprint != built.train.fingerprint
    assert (shorter.train.batch(0)["attention_mask"].sum(1) % 8 == 0).all()


def test_what_cannot_be_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "a", "text": "b"}) + "\n" + json.dumps({"text": "b"}) + "\n")
    with pytest.raises(ConfigError, match="data.prompt_field='question': .*line 1 has no such field.*q, text"):
        build(DataConfig(source=str(path), prompt_field="question", length=8), 1)
    with pytest.raises(ConfigError, match="data.prompt_field='q': .*line 2 has no such field"):
        build(DataConfig(source=str(path), prompt_field="q", length=8), 1)
    path.write_text("".join(json.dumps({"q": n, "text": "b"}) + "\n" for n in range(3)))
    with pytest.raises(ConfigError, match="data.prompt_field='q': .* holds int there"):
        build(DataConfig(source=str(path), prompt_field="q", length=8), 1)
    path.write_text("".join(json.dumps({"q": "long" * 9, "text": "b"}) + "\n" for n in range(9)))
    with pytest.raises(ConfigError, match="0 of . pairs of its train split fit data.length=8"):
        build(DataConfig(source=str(path), prompt_field="q", length=8), 1)


@pytest.mark.parametrize(("fields", "message"), [
    ({"source": "book.txt", "prompt_field": "q"}, "data.prompt_field='q': is read only from .jsonl"),
    ({"source": "a.jsonl", "prompt_field": "text"}, "names the same field as data.text_field"),
    ({"source": "a.jsonl", "prompt_field": "q", "packing": "documents"}, "data.packing='documents': rows of prompts"),
    ({"source": "a.jsonl", "prompt_field": "q", "random_length": 0.01}, "data.random_length=0.01: would cut answers"),
    ({"source": "a.jsonl", "prompt_field": "q", "length_warmup": "8:99"}, "data.length_warmup='8:99': would cut"),
    ({"answer_multiple": 8}, "data.answer_multiple=8: has no meaning without data.prompt_field"),
    ({"source": "a.jsonl", "prompt_field": "q", "answer_multiple": 300}, r"must lie in \[0, data.length=256\]"),
])
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)
