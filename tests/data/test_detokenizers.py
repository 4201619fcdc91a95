"""Detokenisers: each rule on a text that needs it, and where in the pipeline they stand."""

import json

import pytest

from mdlm_jax import config
from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.detokenizers import DETOKENIZERS, detokenized
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.sources import Document
from tests.data.prepared_support import make

CASES = [
    ("wikitext", "1 @,@ 234 @.@ 5 men , 20 @-@ year", "1,234.5 men, 20-year"),
    ("wikitext", "He said : no ; yes . Why ? Oh ! the", "He said: no; yes. Why? Oh! the"),
    ("wikitext", "( a b ) [ c ] { d } \" e f \" ' g '", "(a b) [c] {d} \"e f\" 'g'"),
    ("wikitext", "= = = = Deep = = = = \n = = = Mid = = = \n", "==== Deep ====\n=== Mid ===\n"),
    ("wikitext", " = = Top = = \n the dogs ' bone", " == Top ==\nthe dogs' bone"),
    ("wikitext", "it 's 5 \u00b0 C and N N men", "it's 5\u00b0C and 1 N men"),
    ("ptb", "N N N years of n't and it 's the boys ' \n toys", "N 1 1 years ofn't and it's the boys'\ntoys"),
    ("ptb", "$ N or # N \\/ <unk>", "$1 or #1 / ?"),
    ("lm1b", "see http : / / a.b and https : / / c , d ? e", "see http://a.b and https://c, d? e"),
    ("lm1b", "so ! f : g ; h / i", "so! f: g; h/i"),
    ("lm1b", "it 's over . He went .", "it's over. He went."),
    ("lm1b", "is it ?", "is it?"),
    ("lm1b", "it is !", "it is!"),
    ("lm1b", '" a b " and ( c d ) and [ e ] for $ 5 or \u00a3 6', '"a b" and (c d) and [e] for $5 or \u00a36'),
    ("lambada", " \u201cNo,\u201d he said. \n", '\n"No," he said.'),
    ("scientific_papers", "well @-@ known ( a ) results .", "well-known (a) results."),
    ("ag_news", "up 1 @.@ 5 , $ 3 .", "up 1.5, $3."),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES, ids=range(len(CASES)))
def test_a_text_is_as_people_write_it(name, text, expected):
    assert DETOKENIZERS[name](text) == expected


def test_the_names_are_those_of_the_configuration_and_all_are_tried():
    assert set(DETOKENIZERS) == set(config.DETOKENIZERS) == {name for name, *_ in CASES}
    with pytest.raises(ConfigError, match="data.detokenizer='lm2b': choose one of lm1b"):
        DataConfig(detokenizer="lm2b")


@pytest.mark.parametrize("name", sorted(DETOKENIZERS))
def test_plain_text_and_nothing_survive(name):
    plain = "A plain sentence, with (brackets) and \"quotes\".\nAnother one: 1,234.5 - no more."
    assert DETOKENIZERS[name](plain).strip() == plain
    assert DETOKENIZERS[name]("").strip() == ""


def test_documents_keep_their_names_and_without_rules_their_texts():
    given = [Document("a", "x , y"), Document("b", "z", "prompt")]
    assert list(detokenized(given, "")) == given
    assert list(detokenized(given, "lm1b")) == [Document("a", "x, y"), given[1]]


def test_in_memory_and_prepared_rows_and_bytes_are_of_the_text_as_read(tmp_path):
    lines = [f"number {i} , said he , is ( {i * i} ) ! so" for i in range(80)]
    for name, change in (("a.jsonl", str), ("b.jsonl", DETOKENIZERS["lm1b"])):
        (tmp_path / name).write_text("".join(json.dumps({"text": change(line)}) + "\n" for line in lines))
    fields = {"length": 32, "valid_last": 9}
    raw, clean = (build(DataConfig(source=str(tmp_path / name), **fields, **more), 4) for name, more in
                  (("a.jsonl", {"detokenizer": "lm1b"}), ("b.jsonl", {})))
    assert raw.train.fingerprint == clean.train.fingerprint and raw.info["train"] == clean.info["train"]
    assert raw.train.fingerprint != build(DataConfig(source=str(tmp_path / "a.jsonl"), **fields), 4).train.fingerprint
    manifest = make(tmp_path / "rows", tmp_path / "a.jsonl", valid_last=9, detokenizer="lm1b")
    assert manifest["settings"]["detokenizer"] == "lm1b"
    source = f"prepared:{tmp_path / 'rows'}"
    disk = build(DataConfig(source=source, length=32, detokenizer="lm1b"), 4)
    assert (disk.train.sequential(0, 3)["tokens"] == raw.train.sequential(0, 3)["tokens"]).all()
    assert disk.info["valid"]["bytes"] == raw.info["valid"]["bytes"]
    with pytest.raises(ConfigError, match="data.detokenizer='': the rows in .* were prepared with 'lm1b'; set it"):
        build(DataConfig(source=source, length=32), 4)
    with pytest.raises(ConfigError, match="holds rows prepared with detokenizer='lm1b', and now it is ''"):
        make(tmp_path / "rows", tmp_path / "a.jsonl", valid_last=9)


def test_it_is_refused_where_nothing_reads_it():
    with pytest.raises(ConfigError, match="data.detokenizer='ptb': is for running text"):
        DataConfig(source="a.jsonl", prompt_field="q", detokenizer="ptb")
    with pytest.raises(ConfigError, match="data.detokenizer='ptb': has no meaning"):
        build(DataConfig(source="language:hmm", detokenizer="ptb"), 4)
