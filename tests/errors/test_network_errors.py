"""Mistakes in networks, in their files and in plans of them: the message says what, its value and the remedy.

The key of a case is a part of its message.
"""

import dataclasses
import json
import re
import struct
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import loading
from mdlm_jax.config import RunConfig, to_dict
from mdlm_jax.core.process import Process
from mdlm_jax.models import api, lora, presets
from mdlm_jax.models.attention import dispatch, splash
from mdlm_jax.models.attention.visibility import Places, Visibility
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.hf import families, files, rules, writer
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.models.lora import Lora
from mdlm_jax.models.moe import routing
from mdlm_jax.planning import hlo
from mdlm_jax.training import build
from mdlm_jax.training.checkpoints import Checkpoints
from tests.errors.form import faults

GOLDEN = Path(__file__).parents[1] / "golden/llada"
NETWORK = TransformerConfig(9, 9, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8)
POOLED = dataclasses.replace(NETWORK, moe=MoEConfig(4, 2, 8, block=4, block_pool=3))
STREAMS = dataclasses.replace(NETWORK, attention="two_stream")
LLADA = json.loads((GOLDEN / "llada_ckpt/config.json").read_text())
SMDM = families.write_fields(Description(presets.get("smdm-1028m"), "smdm", mask_id=32000))
OPENED = families.write_fields(Description(dataclasses.replace(
    presets.get("qwen3-0.6b"), attention="bidirectional", logit_shift=False), "llama", mask_id=7))
TOKENS = jnp.zeros((1, 4), jnp.int32)
PARAMS = api.abstract(NETWORK)
HEADER = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
INDEX = "model.safetensors.index.json"


def read(raw: dict, **fields) -> Description:
    return families.read(raw | fields)


def run_config(**sections) -> RunConfig:
    usual = RunConfig()
    return dataclasses.replace(usual, **{name: dataclasses.replace(getattr(usual, name), **fields)
                                         for name, fields in sections.items()})


def attend(split: splash._Split, contract="bidirectional", block_length=1, length=512):
    query, places = jnp.zeros((2, length, 2, 8)), Places(None, None)
    return splash._check(query, query, Visibility(places, places, contract, block_length), "cpu", split)


def dtypes_of(description: Description) -> dict:
    """One leaf in two in half precision."""
    leaves = writer.leaves_of(description)
    return {path: np.dtype(np.float16 if place % 2 else np.float32) for place, path in enumerate(leaves)}


CASES = {
    "tokens=None: give tokens": lambda: api.forward(NETWORK, PARAMS, None),
    "takes [noisy; clean] and no cache, got length 4": lambda: api.forward(
        STREAMS, PARAMS, TOKENS, cache=types.SimpleNamespace(slots=9), start=0),
    "shadow: 4 positions share a pool": lambda: api.forward(POOLED, PARAMS, TOKENS, shadow=TOKENS[:, :1]),
    "start: goes with a cache": lambda: api.forward(NETWORK, PARAMS, TOKENS, start=0),
    "latent: the network reads none; leave it out": lambda: api.forward(NETWORK, PARAMS, TOKENS, latent=jnp.zeros(1)),
    "backend='odd': choose": lambda: dispatch.attend("odd", None, None, None, None),
    "3 devices along tensor cannot share 2 heads": lambda: attend(splash._Split(None, heads=3)),
    "which the kernel cannot split over context": lambda: attend(
        splash._Split(None, context=2), "block_causal", block_length=512),
    "moe.groups=2: a block's pool": lambda: routing._check(
        types.SimpleNamespace(selection_bias=False, block=2, groups=2), jnp.zeros((1, 2, 4)), None),
    "lora.targets=('*/moe/shared_*',): fit no matrix": lambda: lora.adapted_paths(
        Lora(4, targets=("*/moe/shared_*",)), NETWORK),
    "model.learned_positions=8: must": lambda: build.build_network(
        run_config(model={"learned_positions": 8, "rope_theta": 0.0}), 9),
    "model.head_size=7: the tokenizer has 9 ids": lambda: build.build_network(
        run_config(model={"head_size": 7, "vocab_size": 9}), 9),
    # config.json of others
    "model_type='a2d-qwen3' without a section mdlm_jax": lambda: read(
        {name: value for name, value in OPENED.items() if name != "mdlm_jax"}),
    "quantization_config: quantised weights": lambda: read(LLADA, quantization_config={"bits": 4}),
    "embedding_size=9: must be at least vocab_size=256": lambda: read(LLADA, embedding_size=9),
    "embedding_rows=9: must be at least padded_vocab_size=": lambda: read(SMDM, embedding_rows=9),
    "family llada: cannot say this network": lambda: families.write_fields(
        Description(dataclasses.replace(NETWORK, attention="causal"), "llada")),
    "table: must have rules for": lambda: rules.bind(NETWORK, []),
    "table: w gives embedding the shape (8, 9); it must be (9, 8)": lambda: rules.bind(
        NETWORK, [rules.Rule("w", "embedding", "V D -> D V")]),
    "are in float16 and float32; give a dtype": lambda: writer.plan(read(SMDM), dtypes_of(read(SMDM))),
    "dtype float16: nothing is computed in it": lambda: loading._computing_in(
        Description(NETWORK, "llada"), {"embedding": np.zeros(1, np.float16)}),
    "'turns=3': XLA no longer writes": lambda: hlo._found(re.compile("condition="), "turns=3"),
}


@pytest.mark.parametrize("said", CASES)
def test_the_message_says_what_is_wrong_and_the_remedy(said):
    with pytest.raises(ValueError) as caught:
        CASES[said]()
    assert said in str(caught.value) and not faults(str(caught.value)), str(caught.value)


def safetensors(path: Path, header: dict) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)


def unreadable(folder: Path):
    families.read_json(folder / "config.json")


def no_object(folder: Path):
    (folder / "config.json").write_text("[3]")
    families.read_json(folder / "config.json")


def whole_numbers(folder: Path):
    safetensors(folder / "model.safetensors", {"w": HEADER["w"] | {"dtype": "I32"}})
    _ = files.open_directory(folder)["w"].dtype


def twice(folder: Path):
    for name in ("a.safetensors", "b.safetensors"):
        safetensors(folder / name, HEADER)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    files.open_directory(folder)


def no_index(folder: Path):
    (folder / INDEX).write_text("{}")
    files.open_directory(folder)


def another_shape(folder: Path):
    files.write_file(folder / "x", [("w", np.dtype(np.float32), (2,))], lambda name: np.zeros(3, np.float32))


def saved(folder: Path, config: dict) -> None:
    """A run's step without a tokenizer."""
    state = {"trainable": {"network": {"w": jax.numpy.zeros(1)}}}
    Checkpoints(folder / "checkpoints").save(1, state, {}, {"config.json": json.dumps(config)})


def no_tokenizer(folder: Path):
    saved(folder, to_dict(RunConfig()))
    loading.load(folder)


def another_config(folder: Path):
    saved(folder, {"train": {"steps": 0}})
    loading.load(folder)


FILES = {
    "config.json: cannot be read (": unreadable,
    "config.json: must hold a JSON object": no_object,
    "model.safetensors: dtype I32 is not read here; convert it": whole_numbers,
    "b.safetensors: w is also in a.safetensors": twice,
    f"{INDEX}: is not an index of safetensors (KeyError('weight_map'))": no_index,
    "w: is float32(3,); it must be float32(2,)": another_shape,
    "has no tokenizer.json": no_tokenizer,
    "config.json: train.steps=0": another_config,
}


@pytest.mark.parametrize("said", FILES)
def test_a_damaged_file_is_named(said, tmp_path):
    with pytest.raises(ValueError) as caught:
        FILES[said](tmp_path)
    assert said in str(caught.value) and not faults(str(caught.value)), str(caught.value)


def test_a_network_over_the_mask_is_described():
    """The base that the cases above spoil."""
    assert read(LLADA).family == "llada" and read(SMDM).config == presets.get("smdm-1028m")
    assert Process(9, 8).num_columns == 9
