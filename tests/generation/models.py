"""Tiny language models of every contract, with random weights or a law of our choice."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.rules import Description

VOCAB, MASK, EOS = 12, 11, 10
_NETWORK = dict(layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32)


def random_weights(network: TransformerConfig, seed: int = 0) -> dict:
    """Large enough for the scores to depend on the context."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)),
                        api.abstract(network))


def tokens_model(attention: str = "bidirectional", family: str = "", mixing: float = 0.0, **fields) -> LanguageModel:
    """A model without a tokenizer: ids 0..9, the end 10, the mask 11 (published causal ones have no mask)."""
    shape = {"vocab_size": VOCAB, "head_size": VOCAB, "logit_shift": attention == "causal"} | _NETWORK | fields
    network = TransformerConfig(attention=attention, **shape)
    published_causal = attention == "causal" and family
    ids = {"mask_id": None if published_causal else MASK, "eos_id": EOS}
    process = None if published_causal else Process(VOCAB, MASK, mixing)
    return LanguageModel(random_weights(network), Description(network, family, max_length=64, **ids), process)


def bytes_model(favoured: dict[str, float] | None = None, family: str = "") -> LanguageModel:
    """A model of bytes that draws each token from exp(bias), whatever is around it: ``favoured`` are biases by name."""
    tokenizer = ByteTokenizer()
    network = TransformerConfig(tokenizer.vocab_size, tokenizer.vocab_size, head_bias=True, **_NETWORK)
    params = jax.tree.map(jnp.zeros_like, random_weights(network))
    names = {"mask": tokenizer.mask_id, "eos": tokenizer.eos_id}
    bias = np.full(tokenizer.vocab_size, -30.0, np.float32)
    for name, value in (favoured or {"a": 0.0, "b": 0.0}).items():
        bias[names.get(name) or ord(name)] = value
    description = Description(network, family, tokenizer.mask_id, None, tokenizer.eos_id, tokenizer.pad_id, 128)
    process = Process(tokenizer.vocab_size, tokenizer.mask_id)
    return LanguageModel(params | {"head_bias": jnp.asarray(bias)}, description, process, tokenizer)
