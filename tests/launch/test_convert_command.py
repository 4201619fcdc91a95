"""launch.convert: both ways, dry runs, and errors of one line."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import mdlm_jax
from launch import convert
from mdlm_jax.config import DataConfig, RunConfig, to_dict
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.errors import ConfigError
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.models import lora
from mdlm_jax.models.hf import families
from mdlm_jax.training.checkpoints import Checkpoints
from tests.launch.commands import assert_refused, run
from tests.models.hf.support import DESCRIPTIONS, GOLDEN, random_params, random_tensors, save

DREAM = GOLDEN / "dream_ckpt"


def test_there_and_back(tmp_path):
    done = run("launch.convert", f"--from={DREAM}", f"--to={tmp_path / 'ours'}")
    assert done.status == 0, done
    assert "39 tensors" in done.out and "mask_id 246" in done.out
    model, expected = mdlm_jax.load(tmp_path / "ours"), mdlm_jax.load(DREAM)
    assert model.config == expected.config
    assert all(map(np.array_equal, jax.tree.leaves(model.params), jax.tree.leaves(expected.params)))
    done = run("launch.convert", f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'hf'}")
    assert done.status == 0, done
    written, original = load_file(tmp_path / "hf" / "model.safetensors"), load_file(DREAM / "model.safetensors")
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[name], original[name]) for name in original)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (raw["model_type"], raw["mask_token_id"], raw["rope_theta"]) == ("Dream", 246, 1e6)


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path):
    done = run("launch.convert", f"--from={DREAM}", "--dry_run")
    assert done.status == 0 and "model.embed_tokens.weight" in done.out and "256x64" in done.out
    assert not list(tmp_path.iterdir())


def test_bare_safetensors_and_a_preset(tmp_path):
    (tmp_path / "bare").mkdir()
    folder = save(tmp_path / "smdm", DESCRIPTIONS["smdm"], random_tensors(DESCRIPTIONS["smdm"]))
    (folder / "model.safetensors").rename(tmp_path / "bare" / "mdm.safetensors")
    assert_refused(run("launch.convert", f"--from={tmp_path / 'bare'}", "--dry_run"), "--preset")
    done = run("launch.convert", f"--from={tmp_path / 'bare'}", "--preset=smdm-6m", "--dry_run")
    assert done.status == 2 and "of another shape" in done.err and len(done.err.splitlines()) == 1


def _convert(*arguments) -> None:
    assert convert.main([str(argument) for argument in arguments]) == 0


def test_a_mask_that_no_file_names_may_be_given_on_either_way(tmp_path, capsys):
    _convert(f"--from={GOLDEN / 'llada2_ckpt'}", f"--to={tmp_path / 'ours'}")
    with pytest.raises(ConfigError, match="mask_id="):
        mdlm_jax.load(tmp_path / "ours")
    _convert(f"--from={tmp_path / 'ours'}", "--mask_id=255", "--dry_run")
    assert "mask_id 255" in capsys.readouterr().out
    _convert(f"--from={tmp_path / 'ours'}", "--mask_id=255", f"--to={tmp_path / 'named'}")
    _convert(f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'unnamed'}")
    assert families.describe(tmp_path / "named").mask_id == 255
    assert families.describe(tmp_path / "unnamed").mask_id is None
    original = load_file(GOLDEN / "llada2_ckpt" / "model.safetensors")
    for name in ("named", "unnamed"):
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == original.keys() and all(np.array_equal(written[key], original[key]) for key in written)


def test_length_and_dtypes_survive_the_way_there_and_back(tmp_path, capsys):
    description = dataclasses.replace(DESCRIPTIONS["dream"], max_length=131072, dtype="bfloat16")
    tensors = random_tensors(description, dtype=np.dtype(ml_dtypes.bfloat16))
    source = save(tmp_path / "hf", description, tensors)
    expected = mdlm_jax.load(source)
    assert expected.config.dtype == "bfloat16"
    _convert(f"--from={source}", f"--to={tmp_path / 'ours'}")
    model = mdlm_jax.load(tmp_path / "ours")
    assert model.config == expected.config and model.description.max_length == 131072
    np.testing.assert_array_equal(model.logits([[1, 2, 38]]), expected.logits([[1, 2, 38]]))
    capsys.readouterr()
    _convert(f"--from={tmp_path / 'ours'}", "--dry_run")
    table = capsys.readouterr().out
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert "float32" not in table and f"{size / 1e9:.3f} GB" in table
    assert table.count(" bfloat16 ") == len(tensors)
    _convert(f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'back'}")
    again = families.describe(tmp_path / "back")
    assert (again.max_length, again.dtype, again.family) == (131072, "bfloat16", "llama")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["max_position_embeddings"] == 131072


@pytest.mark.parametrize("given, computed", [("float16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_converted_checkpoint_computes_in_what_it_stores(tmp_path, given, computed):
    _convert(f"--from={DREAM}", f"--to={tmp_path / 'ours'}", f"--dtype={given}")
    model = mdlm_jax.load(tmp_path / "ours")
    assert (model.params["embedding"].dtype, model.config.dtype) == (given, computed)


@pytest.mark.parametrize("name", ["a2d_gpt2", "a2d_llama", "illada", "llada22"])
def test_the_family_is_that_of_the_source(tmp_path, name):
    description = DESCRIPTIONS[name]
    source = save(tmp_path / "hf", description, random_tensors(description))
    _convert(f"--from={source}", f"--to={tmp_path / 'ours'}")
    _convert(f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'back'}")
    again, first = families.describe(tmp_path / "back"), families.describe(source)
    assert again == dataclasses.replace(first, dtype="float32")


def test_a_merged_lora_can_be_exported(tmp_path):
    """The product of an adapter is in the weights of the files, and in no other weight."""
    model = mdlm_jax.load(DREAM)
    plan = lora.Lora(rank=2, alpha=4.0, targets=("*/attention/query",))
    adapters = lora.init(plan, model.config, jax.random.key(0))
    pair = adapters["layers/attention/query"]
    pair["b"] = jax.random.normal(jax.random.key(1), pair["b"].shape)
    merged = dataclasses.replace(model, params=lora.merge(plan, model.params, adapters))
    save_checkpoint(tmp_path / "ours", merged)
    _convert(f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'hf'}")
    written, original = load_file(tmp_path / "hf" / "model.safetensors"), load_file(DREAM / "model.safetensors")
    changed = {name for name in written if not np.array_equal(written[name], original[name])}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(model.config.layers)}
    product = 2.0 * np.einsum("dr,rnh->nhd", pair["a"][1], pair["b"][1]).reshape(-1, model.config.d_model)
    added = written["model.layers.1.self_attn.q_proj.weight"] - original["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(added, product, atol=1e-5)
    tokens = np.arange(12).reshape(2, 6)
    again = mdlm_jax.load(tmp_path / "hf")
    assert again.process == model.process
    np.testing.assert_allclose(again.logits(tokens), merged.logits(tokens), atol=1e-5)
    assert np.abs(again.logits(tokens) - model.logits(tokens)).max() > 1e-2


def test_a_run_of_ours_finds_a_family(tmp_path):
    """Trained here, bytes for tokens: LLaDA's family says it, with the length it was trained on."""
    run_config = RunConfig(model=ModelConfig(layers=2, d_model=32, heads=2), data=DataConfig(length=48))
    tokenizer = ByteTokenizer()
    params = random_params(run_config.model.transformer(tokenizer.vocab_size))
    tokenizer.save(tmp_path / "tokenizer.json")
    files = {"config.json": json.dumps(to_dict(run_config)),
             "tokenizer.json": (tmp_path / "tokenizer.json").read_text()}
    Checkpoints(tmp_path / "run" / "checkpoints").save(3, {"trainable": {"network": params}}, {}, files)
    _convert(f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'hf'}")
    found = families.describe(tmp_path / "hf")
    assert (found.family, found.mask_id, found.max_length, found.dtype) == ("llada", 256, 48, "float32")
    tokens = np.arange(12).reshape(2, 6)
    ours, theirs = mdlm_jax.load(tmp_path / "run"), mdlm_jax.load(tmp_path / "hf")
    np.testing.assert_array_equal(ours.logits(tokens), theirs.logits(tokens))


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        ([], ["--from is missing"]),
        (["--from=/nowhere", "--to=x"], ["/nowhere", "no such folder"]),
        ([f"--from={DREAM}"], ["--to is missing"]),
        ([f"--from={DREAM}", f"--to={DREAM}"], ["exists already"]),
        ([f"--from={DREAM}", "--to=x", "--dtype=int4"], ["--dtype=int4", "bfloat16"]),
        ([f"--from={DREAM}", "--to=x", "--preset=dream-7b"], ["--preset", "config.json"]),
        ([f"--from={DREAM}", "--frm=x"], ["--frm", "did you mean --from"]),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, fragments):
    assert_refused(run("launch.convert", *arguments), *fragments)


def test_a_config_that_cannot_be_obeyed_is_refused_before_jax(tmp_path):
    raw = json.loads((DREAM / "config.json").read_text()) | {"use_sliding_window": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert_refused(run("launch.convert", f"--from={tmp_path}", "--dry_run"), "use_sliding_window")


def test_help():
    done = run("launch.convert", "--help")
    assert done.status == 0 and "--from" in done.out and "llada_moe" in done.out



@pytest.mark.parametrize("mask_id", [-1, 256, 9999])
def test_a_mask_that_has_no_row_is_refused_before_anything_is_read(mask_id, tmp_path, capsys):
    source, target = GOLDEN / "llada_ckpt", tmp_path / "ours"
    assert convert.main([f"--from={source}", f"--to={target}", f"--mask_id={mask_id}"]) == 2
    assert f"--mask_id={mask_id}: must lie in [0, 256)" in capsys.readouterr().err and not target.exists()
