"""The folder in which examples and guides run: what a newcomer's own would hold."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.rules import Description


def first_run(folder: Path) -> None:
    """``runs/first``: a model of bytes with random weights, that writes small letters and ends nothing early."""
    tokenizer = ByteTokenizer()
    size, mask = tokenizer.vocab_size, tokenizer.mask_id
    network = TransformerConfig(size, size, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32, head_bias=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)),
                          api.abstract(network))
    letters = (np.arange(size) >= ord("a")) & (np.arange(size) <= ord("z"))
    params |= {"head_bias": jnp.where(letters, 0.0, -30.0).astype(jnp.float32)}
    said = Description(network, "", mask, None, tokenizer.eos_id, tokenizer.pad_id, 128)
    tokenizer.save(folder / "tokenizer.json")
    save_checkpoint(folder / "runs" / "first" / "checkpoints", LanguageModel(params, said, Process(size, mask)),
                    (folder / "tokenizer.json").read_bytes())
