"""The folder in which examples and guides run: what a newcomer's own would hold, but tiny."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.data.tokenizers import ByteTokenizer, Tokenizer, make_tokenizer
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import writer
from mdlm_jax.models.hf.rules import Description


def first_run(folder: Path) -> None:
    """``runs/first``: a model of bytes with random weights, that writes small letters and ends nothing early."""
    tokenizer = ByteTokenizer()
    said = _described(tokenizer, "", head_bias=True)
    ids = np.arange(tokenizer.vocab_size)
    bias = np.where((ids >= ord("a")) & (ids <= ord("z")), 0.0, -30.0).astype(np.float32)
    params = _weights(said.config) | {"head_bias": jnp.asarray(bias)}
    tokenizer.save(folder / "tokenizer.json")
    process = Process(tokenizer.vocab_size, tokenizer.mask_id)
    save_checkpoint(folder / "runs" / "first" / "checkpoints", LanguageModel(params, said, process, tokenizer),
                    (folder / "tokenizer.json").read_bytes())


def published(folder: Path) -> None:
    """A Hugging Face directory in LLaDA's layout."""
    tokenizer = make_tokenizer("bpe:300", lambda: ["The capital of France is Paris."])
    said = _described(tokenizer, "llada")
    writer.write(folder, said, _weights(said.config))
    tokenizer.save(folder / "tokenizer.json")


def _described(tokenizer: Tokenizer, family: str, **fields) -> Description:
    size = tokenizer.vocab_size
    network = TransformerConfig(size, size, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32, **fields)
    return Description(network, family, tokenizer.mask_id, None, tokenizer.eos_id, tokenizer.pad_id, 128)


def _weights(network: TransformerConfig) -> dict:
    """Random ones."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)),
                        api.abstract(network))
