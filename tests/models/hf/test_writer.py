"""Leaves to files: bit for bit there and back, whole or not at all."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.hf import families, files, reader, writer
from mdlm_jax.models.sharding import make_mesh

from .support import DESCRIPTIONS, flat, random_tensors, save


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)], ids=str)
@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_there_and_back_bit_for_bit(tmp_path, name, dtype):
    description = DESCRIPTIONS[name]
    tensors = random_tensors(description, dtype=dtype)
    params = reader.read(save(tmp_path / "in", description, tensors), description)
    writer.write(tmp_path / "out", description, params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert written[key].dtype == dtype and written[key].tobytes() == tensor.tobytes(), key
    again = flat(reader.read(tmp_path / "out", families.describe(tmp_path / "out")))
    assert all(np.array_equal(again[path], leaf) for path, leaf in flat(params).items())


def test_sharded_parameters_are_written_alike(tmp_path):
    description = DESCRIPTIONS["qwen2"]
    tensors = random_tensors(description)
    save(tmp_path / "in", description, tensors)
    params = reader.read(tmp_path / "in", description, mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    writer.write(tmp_path / "out", description, params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(written[key], tensor) for key, tensor in tensors.items())


def test_shards_stay_below_their_limit(tmp_path):
    description = DESCRIPTIONS["llada"]
    params = reader.read(save(tmp_path / "in", description, random_tensors(description)), description)
    writer.write(tmp_path / "out", description, params, shard_bytes=20_000, extra={"tokenizer.json": b"{}"})
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    for path in shards:
        assert sum(tensor.size for tensor in files.read_header(path).values()) <= 20_000
        load_file(path)
    index = json.loads((tmp_path / "out" / files.INDEX).read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    again = flat(reader.read(tmp_path / "out", description))
    assert all(np.array_equal(again[path], leaf) for path, leaf in flat(params).items())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"


def test_an_existing_directory_is_never_touched(tmp_path):
    description = DESCRIPTIONS["llama"]
    params = reader.read(save(tmp_path / "in", description, random_tensors(description)), description)
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    with pytest.raises(FileExistsError):
        writer.write(tmp_path / "in", description, params)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}


def test_a_failure_leaves_no_directory(tmp_path):
    description = DESCRIPTIONS["llama"]
    params = reader.read(save(tmp_path / "in", description, random_tensors(description)), description)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "out", description, params, progress=stop)
    assert not (tmp_path / "out").exists()
    writer.write(tmp_path / "out", description, params)  # and what is left of it is no hindrance


def test_another_tree_is_refused(tmp_path):
    description = DESCRIPTIONS["llama"]
    params = reader.read(save(tmp_path / "in", description, random_tensors(description)), description)
    del params["head"]
    params["layers"]["mlp"]["up"] = params["layers"]["mlp"]["up"][:2]
    with pytest.raises(ConfigError, match="head is None.*layers/mlp/up is"):
        writer.write(tmp_path / "out", description, params)


def test_a_dtype_for_all(tmp_path):
    description = DESCRIPTIONS["llama"]
    params = reader.read(save(tmp_path / "in", description, random_tensors(description)), description)
    writer.write(tmp_path / "out", description, params, dtype="bfloat16")
    assert {tensor.code for tensor in files.open_directory(tmp_path / "out").values()} == {"BF16"}
    assert families.describe(tmp_path / "out").dtype == "bfloat16"
