"""What a Python user holds, from both kinds of directories."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.config import RunConfig, to_dict
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.answers import Likelihood
from mdlm_jax.generation.generate import Generation
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.models import api
from mdlm_jax.models.circuit import Circuit, CircuitConfig
from mdlm_jax.models.fused import FusedHead
from mdlm_jax.models.joint import JointSampler
from mdlm_jax.models.quality import QualityConfig, QualityHead
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.training.checkpoints import Checkpoints
from tests.models.hf.support import DESCRIPTIONS, GOLDEN, flat, random_tensors, save


def test_dream_by_its_name():
    model = mdlm_jax.load(GOLDEN / "dream_ckpt")
    golden = np.load(GOLDEN / "dream_logits.npz")
    tokens, theirs = golden["full_input_ids"], golden["full_logits"]
    np.testing.assert_allclose(model.logits(tokens, raw=True), theirs, atol=1e-3)
    np.testing.assert_allclose(model.logits(tokens)[:, 1:], theirs[:, :-1], atol=1e-3)
    assert (model.process.mask_id, model.process.vocab_size, model.tokenizer) == (246, 256, None)
    mask = golden["leftpad_attention_mask"]
    padded = model.logits(golden["leftpad_input_ids"], mask, raw=True)
    np.testing.assert_allclose(padded[mask == 1], golden["leftpad_logits"][mask == 1], atol=1e-3)


def test_one_line_stands_for_a_model_and_for_an_answer():
    model = mdlm_jax.load(GOLDEN / "llada_ckpt")
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert repr(model) == (f"LanguageModel(llada, {size:,} parameters in float32, 3 layers, width 64, vocabulary 256, "
                           "max_length 256)")
    given = np.arange(3000)
    answer = Generation(given[:2], "yes\n", "eos", 7, given, given < 5, np.tile(given, (9, 1)))
    assert repr(answer) == "Generation('yes\\n', tokens=<2 ids>, finish='eos', forwards=7)" and str(answer) == "yes\n"
    answer = Generation(given, "yes " * 500, "length", 7, given, given < 5)
    assert "yes y..." in repr(answer) and len(repr(answer)) < 160


def test_what_a_program_holds_is_shown_in_a_few_lines():
    many = np.linspace(-40, -1, 5000)
    assert len(repr(Likelihood(many, many, many, many > -9, many))) < 500
    one = Likelihood(np.float64(-40.0), np.float64(0.5), np.int64(3), np.bool_(False), np.int64(7))
    assert repr(one) == "Likelihood(nats=-40., stderr=0.5, tokens=3, exact=False, forwards=7)"
    assert repr(ByteTokenizer()) == "ByteTokenizer(vocab_size=259, mask_id=256, eos_id=257, pad_id=258)"
    network = DESCRIPTIONS["llada"].config
    weights = {"w": np.zeros((1000, 1000))}
    twin = Twin(weights, DESCRIPTIONS["qwen3"].config, 0)
    beside = [JointSampler(weights, weights["w"], network, 4), twin, LeftReading(weights, network),
              QualityHead(weights, weights["w"], QualityConfig(network, "prism")),
              Circuit(weights, CircuitConfig(4, 9)), FusedHead(weights, twin, weights["w"])]
    assert [one for one in beside if len(repr(one)) > 80] == []
    assert repr(beside[0]) == "JointSampler(most=4, scope='row')"


def test_on_a_mesh_and_in_bfloat16():
    tokens = np.load(GOLDEN / "llada_logits.npz")["full_input_ids"]
    whole = mdlm_jax.load(GOLDEN / "llada_ckpt").logits(tokens)
    sharded = mdlm_jax.load(GOLDEN / "llada_ckpt", mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    np.testing.assert_allclose(sharded.logits(tokens), whole, atol=1e-3)
    narrow = mdlm_jax.load(GOLDEN / "llada_ckpt", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow.params)} == {"bfloat16"}
    assert narrow.config.dtype == "bfloat16" and narrow.logits(tokens).dtype == np.float32
    assert np.corrcoef(np.ravel(narrow.logits(tokens)), np.ravel(whole))[0, 1] > 0.99


def test_a_mask_that_no_file_names():
    with pytest.raises(ConfigError, match="mask_id="):
        mdlm_jax.load(GOLDEN / "llada2_ckpt")
    assert mdlm_jax.load(GOLDEN / "llada2_ckpt", mask_id=255).process.mask_id == 255
    with pytest.raises(ConfigError, match="mask_id=256"):
        mdlm_jax.load(GOLDEN / "llada2_ckpt", mask_id=256)


def test_a_mask_that_the_files_name_stays():
    named = mdlm_jax.load(GOLDEN / "llada_ckpt").process.mask_id
    assert mdlm_jax.load(GOLDEN / "llada_ckpt", mask_id=named).process.mask_id == named
    with pytest.raises(ConfigError, match=f"mask_id=7: the mask of .*llada_ckpt is {named}, as its files say; leave"):
        mdlm_jax.load(GOLDEN / "llada_ckpt", mask_id=7)


@pytest.mark.parametrize(("path", "options", "message"), [
    (None, {}, r"path=None: must be the name of a folder, as in mdlm_jax.load\('runs/first'\)"),
    ("GSAI-ML/LLaDA-8B-Base", {}, "of the Hub first: hf download GSAI-ML/LLaDA-8B-Base --local-dir LLaDA-8B-Base"),
    ("runs/none", {}, "there is no such directory; give a Hugging Face directory or a run's workdir$"),
    ("x", {"dtype": "fp16"}, "dtype='fp16': choose one of 'float32'"),
])
def test_what_is_no_model(path, options, message):
    with pytest.raises(ConfigError, match=message):
        mdlm_jax.load(path, **options)


def test_answers_are_equal_field_by_field():
    one = Generation(np.arange(3), "abc", "length", 3, np.arange(5), np.zeros(5, bool))
    same = dataclasses.replace(one, tokens=np.arange(3))
    assert one == same and one != dataclasses.replace(one, row=np.zeros(5, int)) and one != "abc"


def test_an_autoregressive_model_has_no_noise(tmp_path):
    description = DESCRIPTIONS["qwen3"]
    save(tmp_path / "qwen3", description, random_tensors(description))
    model = mdlm_jax.load(tmp_path / "qwen3")
    assert model.process is None and model.config.attention == "causal"
    tokens = np.arange(12).reshape(2, 6)
    raw, aligned = model.logits(tokens, raw=True), model.logits(tokens)
    np.testing.assert_array_equal(aligned[:, 1:], raw[:, :-1])


def test_a_head_narrower_than_the_table(tmp_path):
    description = DESCRIPTIONS["smdm"]
    save(tmp_path / "smdm", description, random_tensors(description))
    process = mdlm_jax.load(tmp_path / "smdm").process
    assert (process.vocab_size, process.num_columns, process.mask_id) == (41, 40, 40)


@pytest.mark.parametrize("tokens, match", [([[1, 2]], None), ([[1, 300]], "300"), ([[-1, 2]], "-1"), ([1, 2], "B, L"),
                                           ([[0.5]], "integers")])
def test_tokens_are_checked(tokens, match):
    model = mdlm_jax.load(GOLDEN / "llada_ckpt")
    if match is None:
        assert model.logits(tokens).shape == (1, 2, 256)
    else:
        with pytest.raises(ValueError, match=match):
            model.logits(tokens)
    with pytest.raises(ValueError, match="attention_mask"):
        model.logits([[1, 2]], [[1, 1, 1]])


def test_a_converted_checkpoint_is_the_same_model(tmp_path):
    model = mdlm_jax.load(GOLDEN / "dream_ckpt")
    save_checkpoint(tmp_path / "ours", model)
    again = mdlm_jax.load(tmp_path / "ours")
    assert again.config == model.config and again.process == model.process
    assert (again.description.mask_id, again.description.max_length) == (246, 256)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True))
    sharded = mdlm_jax.load(tmp_path / "ours", mesh=make_mesh({"fsdp": 8}), dtype="bfloat16")
    assert len(sharded.params["head"].sharding.device_set) == 8 and sharded.params["head"].dtype == "bfloat16"


def test_a_run_of_ours(tmp_path):
    tokenizer = ByteTokenizer()
    run = RunConfig(model=ModelConfig(layers=2, d_model=32, heads=2))
    network = run.model.transformer(tokenizer.vocab_size)
    trainable, ema = ({"network": api.init(network, jax.random.key(seed))} for seed in (0, 1))
    tokenizer.save(tmp_path / "tokenizer.json")
    import json

    files = {"config.json": json.dumps(to_dict(run)), "tokenizer.json": (tmp_path / "tokenizer.json").read_text()}
    Checkpoints(tmp_path / "run" / "checkpoints").save(7, {"trainable": trainable, "ema": ema}, {}, files)
    model = mdlm_jax.load(tmp_path / "run")
    assert all(np.array_equal(leaf, flat(ema["network"])[path]) for path, leaf in flat(model.params).items())
    assert model.process.mask_id == 256 and model.tokenizer.decode(model.tokenizer.encode("abc")) == "abc"
    assert model.logits(model.tokenizer.encode("abc")[None]).shape == (1, 3, 259)


def test_the_files_decide_which_ids_are_special(tmp_path):
    from mdlm_jax.data.subword import train_bpe

    shutil.copytree(GOLDEN / "llada_ckpt", tmp_path / "llada")
    train_bpe(["abc abd " * 50], 260).save(tmp_path / "llada" / "tokenizer.json")
    tokenizer = mdlm_jax.load(tmp_path / "llada").tokenizer
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (250, 251, 251)


def test_neither_kind(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        mdlm_jax.load(tmp_path)
    with pytest.raises(ConfigError, match="no such directory"):
        mdlm_jax.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="dtype='int8'"):
        mdlm_jax.load(GOLDEN / "llada_ckpt", dtype="int8")
