"""transformers reads what we write, and we read what it writes: the same logits both ways."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api
from mdlm_jax.models.hf import families, reader, writer

from .support import DESCRIPTIONS, random_tensors, save

pytestmark = [pytest.mark.slow, pytest.mark.interop]

CAUSAL = ["llama", "llama3", "llama_biased", "llama_yarn", "qwen2", "qwen3", "gpt2"]
TOKENS = np.array([[1, 5, 9, 2, 30, 17, 8, 8, 0, 39, 21], [4, 4, 7, 11, 13, 38, 2, 1, 6, 25, 3]])


def _theirs(folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model, model(torch.as_tensor(TOKENS)).logits.numpy()


def _ours(folder):
    description = families.describe(folder)
    params = reader.read(folder, description, dtype="float32")
    return np.asarray(api.apply(description.config, params, jnp.asarray(TOKENS), raw=True).logits())


@pytest.mark.parametrize("name", CAUSAL)
def test_transformers_reads_what_we_write(tmp_path, name):
    description = DESCRIPTIONS[name]
    tensors = {key: 0.3 * value for key, value in random_tensors(description).items()}
    params = reader.read(save(tmp_path / "in", description, tensors), description)
    writer.write(tmp_path / "out", description, params)
    _, logits = _theirs(tmp_path / "out")
    np.testing.assert_allclose(_ours(tmp_path / "out"), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.filterwarnings("error:config.json")
def test_we_read_what_transformers_writes(tmp_path, name):
    description = DESCRIPTIONS[name]
    save(tmp_path / "in", description, {key: 0.3 * value for key, value in random_tensors(description).items()})
    model, logits = _theirs(tmp_path / "in")
    model.save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    again = families.describe(tmp_path / "saved")
    assert again.config == description.config
    np.testing.assert_allclose(_ours(tmp_path / "saved"), logits, rtol=1e-4, atol=1e-4)


def test_an_adapted_model_is_not_taken_for_a_causal_one(tmp_path):
    from transformers import AutoModelForCausalLM

    description = DESCRIPTIONS["a2d_llama"]
    save(tmp_path / "in", description, random_tensors(description))
    with pytest.raises(ValueError, match="a2d-llama"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "in")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_opened_weights_are_transformers_under_a_mask_that_hides_nothing(tmp_path, name):
    """The causal weights of transformers, run by it with every key visible, are our bidirectional network."""
    import torch
    from transformers import AutoModelForCausalLM

    description = DESCRIPTIONS[name]
    tensors = {key: 0.3 * value for key, value in random_tensors(description).items()}
    folder = save(tmp_path / "in", description, tensors)
    params = reader.read(folder, description, dtype="float32")
    writer.write(tmp_path / "out", description, params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    model.eval()
    rows, length = TOKENS.shape
    with torch.no_grad():
        opened = model(torch.as_tensor(TOKENS), attention_mask=torch.zeros(rows, 1, length, length)).logits.numpy()
        causal = model(torch.as_tensor(TOKENS)).logits.numpy()
    config = dataclasses.replace(description.config, attention="bidirectional")
    found = np.asarray(api.apply(config, params, jnp.asarray(TOKENS), raw=True).logits())
    np.testing.assert_allclose(found, opened, rtol=1e-4, atol=1e-4)
    assert np.abs(opened - causal).max() > 1e-2  # the mask was honoured
