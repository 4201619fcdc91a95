"""Files to leaves: every number in its place, on every mesh; errors before any reading."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdlm_jax.config import MESH_AXES, ConfigError
from mdlm_jax.models import api
from mdlm_jax.models.hf import families, files, reader
from mdlm_jax.models.hf.layout import Layout
from mdlm_jax.models.sharding import make_mesh

from .support import DESCRIPTIONS, GOLDEN, flat, random_tensors, save

D, N, K, H, F, X = 32, 4, 2, 8, 48, 6


def _read(tmp_path, name, layout=0, **options):
    description = DESCRIPTIONS[name]
    tensors = random_tensors(description, layout)
    save(tmp_path / "model", description, tensors)
    return tensors, flat(reader.read(tmp_path / "model", description, **options))


def test_llama_matrices_are_transposed_and_cut_into_heads(tmp_path):
    tensors, leaves = _read(tmp_path, "llama_biased")
    for layer in range(3):
        attention = f"model.layers.{layer}.self_attn"
        x = np.random.default_rng(1).standard_normal((5, D)).astype(np.float32)
        q = x @ tensors[f"{attention}.q_proj.weight"].T + tensors[f"{attention}.q_proj.bias"]
        ours = np.einsum("bd,dnh->bnh", x, leaves["layers/attention/query"][layer])
        ours = ours + leaves["layers/attention/query_bias"][layer]
        np.testing.assert_allclose(ours, q.reshape(5, N, H), rtol=1e-5, atol=1e-5)
        o = q @ tensors[f"{attention}.o_proj.weight"].T
        ours = np.einsum("bnh,nhd->bd", q.reshape(5, N, H), leaves["layers/attention/out"][layer])
        np.testing.assert_allclose(ours, o, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(
            leaves["layers/mlp/gate"][layer], tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].T
        )
    np.testing.assert_array_equal(leaves["head"], tensors["lm_head.weight"].T)


def test_llada2_rows_are_all_queries_then_keys_then_values(tmp_path):
    tensors, leaves = _read(tmp_path, "llada2")
    for layer, ours, index in ((0, "dense_layers", 0), (2, "layers", 1)):
        rows = tensors[f"model.layers.{layer}.attention.query_key_value.weight"]
        for name, first, last in (("query", 0, N), ("key", N, N + K), ("value", N + K, N + 2 * K)):
            expected = rows[first * H : last * H].T.reshape(D, last - first, H)
            np.testing.assert_array_equal(leaves[f"{ours}/attention/{name}"][index], expected)
    up = tensors["model.layers.2.mlp.experts.4.up_proj.weight"]
    np.testing.assert_array_equal(leaves["layers/moe/up"][1, 4], up.T)
    np.testing.assert_array_equal(leaves["layers/moe/router_bias"][0], tensors["model.layers.1.mlp.gate.expert_bias"])


def test_merged_experts_are_read_too(tmp_path):
    tensors, leaves = _read(tmp_path, "llada2", layout=1)
    merged = tensors["model.layers.1.mlp.experts.down_proj"]
    np.testing.assert_array_equal(leaves["layers/moe/down"][0], merged.transpose(0, 2, 1))


def test_smdm_interleaves_by_group(tmp_path):
    tensors, leaves = _read(tmp_path, "smdm")
    rows = tensors["transformer.h.1.attn.attn.weight"].reshape(K, N // K + 2, H, D)
    for head in range(N):
        group, within = divmod(head, N // K)
        np.testing.assert_array_equal(leaves["layers/attention/query"][1, :, head], rows[group, within].T)
    np.testing.assert_array_equal(leaves["layers/attention/key"][1], rows[:, -2].transpose(2, 0, 1))
    np.testing.assert_array_equal(leaves["layers/attention/value"][1], rows[:, -1].transpose(2, 0, 1))


@pytest.mark.parametrize("layout", [0, 1])
def test_gpt2_is_stored_in_by_out_with_and_without_prefix(tmp_path, layout):
    tensors, leaves = _read(tmp_path, "gpt2", layout=layout)
    prefix = ["transformer.", ""][layout]
    fused = tensors[f"{prefix}h.2.attn.c_attn.weight"].reshape(D, 3, N, H)
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(leaves[f"layers/attention/{name}"][2], fused[:, i])
    np.testing.assert_array_equal(leaves["layers/mlp/up"][2], tensors[f"{prefix}h.2.mlp.c_fc.weight"])


def test_mdlm_modulation_is_cut_into_its_parts(tmp_path):
    tensors, leaves = _read(tmp_path, "mdlm")
    rows = tensors["backbone.blocks.1.adaLN_modulation.weight"]
    for part in range(6):
        np.testing.assert_array_equal(leaves["layers/modulation/kernel"][1, :, part], rows[part * D : part * D + D].T)
    np.testing.assert_array_equal(leaves["time/second"], tensors["backbone.sigma_map.mlp.2.weight"].T)


MESHES = [{"fsdp": 8}, {"tensor": 8}, {"fsdp": 2, "tensor": 4}, {"replica": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["qwen2", "smdm", "gpt2", "mdlm"])
def test_every_mesh_gets_the_same_numbers(tmp_path, name, sizes):
    mesh = make_mesh(sizes)
    description = DESCRIPTIONS[name]
    _, whole = _read(tmp_path, name)
    sharded = reader.read(tmp_path / "model", description, mesh=mesh)
    layouts = flat(api.shardings(description.config, mesh))
    for path, leaf in flat(sharded).items():
        assert leaf.sharding.is_equivalent_to(layouts[path], leaf.ndim), path
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    assert set(mesh.axis_names) == set(MESH_AXES)


def test_heads_of_one_group_on_two_devices():
    """A cut within a bracket is not a view; the pattern says so, and the reader takes the long way."""
    layout = Layout("(K P H) D -> D (K P) H", (("D", 3), ("K", 2), ("H", 2)), (2, 1, 1), 0)
    assert layout.splits(((0, 3), (0, 2), (0, 2))) and not layout.splits(((0, 3), (1, 2), (0, 2)))
    assert layout.file_shape == (16, 3) and layout.leaf_shape == (3, 4, 2)


@pytest.mark.parametrize("stored, wanted", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")])
def test_dtypes_are_converted_on_the_way(tmp_path, stored, wanted):
    description = DESCRIPTIONS["llama"]
    dtype = np.dtype(getattr(ml_dtypes, stored, stored))
    tensors = random_tensors(description, dtype=dtype)
    save(tmp_path / "model", description, tensors)
    asis = flat(reader.read(tmp_path / "model", description))
    assert {leaf.dtype for leaf in asis.values()} == {dtype}
    converted = flat(reader.read(tmp_path / "model", description, dtype=wanted))
    for path, leaf in converted.items():
        np.testing.assert_array_equal(leaf, np.asarray(asis[path]).astype(leaf.dtype))
        assert leaf.dtype == wanted


def test_shards_and_their_index(tmp_path):
    description = DESCRIPTIONS["llama"]
    tensors, whole = _read(tmp_path, "llama")
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(tensors)
    weights = {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file)
        weights |= dict.fromkeys(names[i::3], file)
    (folder / files.INDEX).write_text(json.dumps({"weight_map": weights}))
    again = flat(reader.read(folder, description))
    assert all(np.array_equal(again[path], leaf) for path, leaf in whole.items())
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError, match="model-00002-of-00003.safetensors"):
        reader.read(folder, description)


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
    description = DESCRIPTIONS["llama"]
    tensors = random_tensors(description)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((D, F), np.float32)
    tensors["model.layers.2.self_attn.sinks"] = np.zeros(4, np.float32)
    tensors["model.norm.weight"] = np.zeros(D, np.int8)
    save(tmp_path / "model", description, tensors)
    with pytest.raises(ConfigError) as caught:
        reader.read(tmp_path / "model", description)
    message = str(caught.value)
    for fragment in ("missing: model.layers.1.self_attn.k_proj.weight", "unexpected: model.layers.2.self_attn.sinks",
                     "model.layers.0.mlp.up_proj.weight is [32, 48] and must be [48, 32]", "model.norm.weight is I8"):
        assert fragment in message


def test_buffers_and_a_tied_head_are_passed_over(tmp_path):
    description = DESCRIPTIONS["qwen2"]
    tensors = random_tensors(description)
    extra = {"lm_head.weight": tensors["model.embed_tokens.weight"],
             "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    save(tmp_path / "model", description, tensors | extra)
    reader.read(tmp_path / "model", description)


def test_bad_requests(tmp_path):
    _read(tmp_path, "llama")
    with pytest.raises(ConfigError, match="dtype='int8'"):
        reader.read(tmp_path / "model", DESCRIPTIONS["llama"], dtype="int8")
    with pytest.raises(ConfigError, match="safetensors"):
        reader.read(tmp_path, DESCRIPTIONS["llama"])
    with jax.enable_x64(False), pytest.raises(ConfigError, match="jax_enable_x64"):
        reader.read(tmp_path / "model", DESCRIPTIONS["llama"], dtype="float64")


def test_layers_in_two_dtypes_need_a_choice(tmp_path):
    description = DESCRIPTIONS["llama"]
    tensors = random_tensors(description)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
    save(tmp_path / "model", description, tensors)
    with pytest.raises(ConfigError, match="layers/mlp/up.*float16 and float32"):
        reader.read(tmp_path / "model", description)
    reader.read(tmp_path / "model", description, dtype="float32")


def test_progress_counts_the_bytes(tmp_path):
    seen = []
    _, leaves = _read(tmp_path, "llama", progress=lambda done, total: seen.append((done, total)))
    total = sum(leaf.nbytes for leaf in leaves.values())
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("cut", [4, 100, -8])
def test_a_file_that_was_cut_off_is_refused(tmp_path, cut):
    _read(tmp_path, "llama")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="download it again"):
        reader.read(tmp_path / "model", DESCRIPTIONS["llama"])


def _rewritten(path, change):
    """The same file with another header."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize(
    "offsets, message",
    [([0, 96], "b begins at byte .* overlaps"), ([8, 104], "b begins at byte .* overlaps"),
     ([104, 200], "b begins at byte .* leaves a gap"), ([-96, 0], "whole and not negative"),
     ([96.0, 192.0], "whole and not negative"), ([96, 190], "its bytes must be its shape's")],
    ids=["same", "overlap", "gap", "negative", "fraction", "size"],
)
def test_tensors_that_overlap_or_leave_gaps_are_refused_by_name(tmp_path, offsets, message):
    tensors = {name: np.full((4, 6), i, np.float32) for i, name in enumerate("abc")}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert files.read_header(path).keys() == tensors.keys()
    _rewritten(path, lambda header: header["b"].update(data_offsets=offsets))
    with pytest.raises(ConfigError, match=message):
        files.read_header(path)


def test_tensors_in_place_are_those_of_the_library():
    path = GOLDEN / "dream_ckpt" / "model.safetensors"
    ours, theirs = files.read_header(path), load_file(path)
    assert ours.keys() == theirs.keys()
    for name, stored in ours.items():
        np.testing.assert_array_equal(stored.map(), theirs[name])


@pytest.mark.parametrize(
    "shape, axes", [((300, 200), (1, 0)), ((5, 130, 7, 9), (2, 0, 3, 1)), ((1, 3), (1, 0)), ((), ())]
)
def test_copying_by_tiles_copies(shape, axes):
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    target = np.empty(tuple(shape[a] for a in axes), ml_dtypes.bfloat16)
    reader.copy(target, source.transpose(axes))
    np.testing.assert_array_equal(target, source.transpose(axes).astype(ml_dtypes.bfloat16))


def test_ids_of_generation_config_fill_the_gaps(tmp_path):
    description = DESCRIPTIONS["llama"]
    save(tmp_path / "model", description, random_tensors(description))
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [7, 8], "pad_token_id": 9}')
    found = families.describe(tmp_path / "model")
    assert (found.eos_id, found.pad_id) == (2, 9)
