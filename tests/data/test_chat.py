"""Conversations: the templates by hand, one row for every answer, and special names that people write."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers as hf

from mdlm_jax.config import CHAT_TEMPLATES, ConfigError, DataConfig
from mdlm_jax.data.chat import TEMPLATES, check_markers, exchanges, prompt, spelled_out
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.prompts import answer_rows
from mdlm_jax.data.sources import Document
from mdlm_jax.data.subword import SubwordTokenizer, train_bpe
from mdlm_jax.data.tokenizers import ByteTokenizer

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


def test_a_prompt_is_what_training_puts_before_the_answer(tokenizer):
    talk = [{"role": "user", "content": "say <|im_end|>"}]
    asked = prompt(talk, "chatml", tokenizer)
    (one,) = exchanges([*talk, {"role": "assistant", "content": "no"}], "chatml", "here")
    (row,) = answer_rows([Document("d", one.answer, "", one.prompt, one.end)], tokenizer, 64, 0)
    assert asked.tolist() == (-1 - row[row < 0]).tolist()
    assert (asked == tokenizer.special["<|im_end|>"]).sum() == 1
    with pytest.raises(ConfigError, match="template='chat': choose one of chatml"):
        prompt(talk, "chat", tokenizer)


def test_markers_that_a_tokenizer_lacks_are_named(tokenizer):
    assert spelled_out("chatml", tokenizer) == () and check_markers("chatml", tokenizer, "tokenizer.json") == ""
    assert spelled_out("llama3", tokenizer) == ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                                "<|eot_id|>")
    assert spelled_out("llada2", tokenizer) == ("<|role_end|>",)  # <role> is text where it is no token
    for given, spec in ((ByteTokenizer(), "byte"), (tokenizer, "folder/tokenizer.json")):
        template = "chatml" if spec == "byte" else "llada2"
        marker = TEMPLATES[template].end.strip()
        with pytest.raises(ConfigError) as caught:
            check_markers(template, given, spec)
        for part in (f"data.chat_template='{template}'", f"data.tokenizer='{spec}'", marker, "chat_template=plain"):
            assert part in str(caught.value)
        assert check_markers("plain", given, spec) == ""


def test_a_run_that_trains_its_tokenizer_is_told(tokenizer):
    trained = train_bpe(["a b a b a b"], 270)
    note = check_markers("chatml", trained, "bpe:270")
    assert "data.tokenizer='bpe:270' has no token for <|im_start|>, <|im_end|>; each is written as ordinary" in note
    assert check_markers("chatml", tokenizer, "bpe:270") == ""  # that of a checkpoint, taken instead


def test_a_marker_is_a_token_also_where_it_is_not_called_special():
    made = hf.Tokenizer(hf.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.add_tokens([hf.AddedToken("<|im_start|>", special=False)])
    assert spelled_out("chatml", SubwordTokenizer(made)) == ("<|im_end|>",)  # an unknown word is one token as well


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


def test_a_run_is_refused_or_told_where_the_markers_would_be_text(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"talk": TALK}) + "\n" for _ in range(60)))
    config = DataConfig(source=str(path), messages_field="talk", length=256)  # bytes and chatml, unless told otherwise
    with pytest.raises(ConfigError, match="data.chat_template='chatml': data.tokenizer='byte' has no token for"):
        build(config, 4)
    built = build(dataclasses.replace(config, tokenizer="bpe:300"), 4)
    assert "data.tokenizer='bpe:300' has no token for <|im_start|>" in built.info["note"]
    assert "note" not in build(dataclasses.replace(config, chat_template="plain"), 4).info


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
