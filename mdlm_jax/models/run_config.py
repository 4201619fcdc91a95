"""The network of a run: `mdlm_jax.config.ModelConfig` and the tokenizer's vocabulary to a `TransformerConfig`."""

from mdlm_jax.config import ModelConfig
from mdlm_jax.models.config import RopeConfig, TransformerConfig


def from_run(model: ModelConfig, vocab_size: int) -> TransformerConfig:
    """``ModelConfig`` with its defaults filled in."""
    return TransformerConfig(
        vocab_size=vocab_size,
        head_size=vocab_size,
        layers=model.layers,
        d_model=model.d_model,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        d_ff=model.d_ff or -(-8 * model.d_model // (3 * 64)) * 64,
        dropout=model.dropout,
        conditioning="time" if model.time_conditioning else "none",
        tied=model.tied,
        rope=RopeConfig(theta=model.rope_theta),
        dtype=model.dtype,
        remat="full" if model.remat else "none",
    )
