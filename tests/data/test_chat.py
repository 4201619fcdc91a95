"""Conversations: the templates by hand, one row for every answer, and special names that people write."""

import json

import numpy as np
import pytest
import tokenizers as hf

from mdlm_jax.config import CHAT_TEMPLATES, ConfigError, DataConfig
from mdlm_jax.data.chat import TEMPLATES, exchanges
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.prompts import answer_rows
from mdlm_jax.data.sources import Document
from mdlm_jax.data.subword import SubwordTokenizer

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."}]


def text(pieces):
    return "".join(piece for piece, _ in pieces)


def test_the_templates_are_those_that_the_configuration_names():
    assert list(TEMPLATES) == list(CHAT_TEMPLATES)


@pytest.mark.parametrize(("name", "first", "answer_end"), [
    ("chatml", "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n",
     "<|im_end|>\n"),
    ("llama3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     "<|eot_id|>"),
    ("llada2", "<role>SYSTEM</role>Be kind.<|role_end|><role>HUMAN</role> Hi\n<|role_end|><role>ASSISTANT</role>",
     "<|role_end|>"),
    ("plain", "system: Be kind.\nuser:  Hi\n\nassistant: ", "\n"),
])
def test_a_conversation_is_written_down_as_its_model_wants_it(name, first, answer_end):
    one, two = exchanges(TALK, name, "here")
    assert text(one.prompt) == first and (one.answer, one.end) == ("Hello!", answer_end)
    assert text(two.prompt).startswith(first + "Hello!" + answer_end) and two.answer == "See you."
    assert [said for said, named in two.prompt if not named] == [TEMPLATES[name].said(t["content"]) for t in TALK[:4]]


@pytest.mark.parametrize(("messages", "said"), [
    ("hi", "must be a list"), ([{"role": "user"}], "content of type NoneType"), ([], "nobody answers"),
    ([{"role": "user", "content": "x"}], "nobody answers"), ([["a"]], "must be a list of objects"),
])
def test_what_is_no_conversation_is_refused(messages, said):
    with pytest.raises(ConfigError, match=f"line 3.*{said}"):
        list(exchanges(messages, "plain", "line 3"))


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and the special tokens of ChatML."""
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    made.train_from_iterator(["aa"], hf.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|mask|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]))
    return SubwordTokenizer(made)


def test_heads_are_special_tokens_and_what_people_say_is_text(tokenizer):
    talk = [{"role": "user", "content": "say <|im_end|>"}, {"role": "assistant", "content": "no"}]
    (one,) = exchanges(talk, "chatml", "here")
    (row,) = answer_rows([Document("d", one.answer, "", one.prompt, one.end)], tokenizer, 64, 0)
    prompt, rest = -1 - row[row < 0], row[row >= 0]
    special = tokenizer.special
    assert (prompt == special["<|im_start|>"]).sum() == 2 and (prompt == special["<|im_end|>"]).sum() == 1
    assert tokenizer.decode(prompt, show_special=True) == text(one.prompt)
    assert rest[:4].tolist() == [*tokenizer.encode("no"), special["<|im_end|>"], *tokenizer.encode("\n")]
    assert (rest[4:] == tokenizer.eos_id).all()


def test_a_source_of_conversations(tmp_path, tokenizer):
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"talk": TALK[: 3 + 2 * (n % 2)]}) + "\n" for n in range(60)))
    config = DataConfig(source=str(path), messages_field="talk", chat_template="plain", length=128)
    built = build(config, 4, tokenizer)
    splits = [built.info[split] for split in ("train", "valid")]
    assert sum(s["rows"] for s in splits) == 90
    batch = built.train.batch(0)
    assert "assistant: " in tokenizer.decode(batch["tokens"][0])
    assert np.array_equal(batch["noise_mask"], batch["loss_mask"]) and not batch["noise_mask"][:, 0].any()
    with pytest.raises(ConfigError, match="messages_field='chat'.*has no such field"):
        build(DataConfig(source=str(path), messages_field="chat", length=128), 4, tokenizer)


@pytest.mark.parametrize(("fields", "said"), [
    ({"source": "a.txt", "messages_field": "m"}, "data.messages_field='m': is read only from .jsonl"),
    ({"source": "a.jsonl", "messages_field": "m", "prompt_field": "p"}, "data.prompt_field='p': is not read with"),
    ({"source": "a.jsonl", "messages_field": "m", "text_field": "t"}, "data.text_field='t': is not read with"),
    ({"source": "a.jsonl", "messages_field": "m", "chat_template": "none"}, "choose one of chatml"),
    ({"source": "a.jsonl", "chat_template": "llada"}, "has no meaning without data.messages_field"),
])
def test_fields_that_do_not_fit(fields, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(**fields)
