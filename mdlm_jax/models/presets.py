"""Published networks by name: ``presets.get("llada-8b")``. Free of jax.

In a recipe: ``config.model.update(presets.fields("llada-8b"))``. The autoregressive bases are causal and score the next
token, as published; `models.adapt` opens them. Sizes are from the published config.json files and papers named beside
them; the tests hold the parameter counts.
"""

import dataclasses
import difflib
from typing import Any

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import MoEConfig, RopeConfig, TransformerConfig


def get(name: str) -> TransformerConfig:
    """The network of that name; ConfigError with the nearest names where there is none.

    Examples:
      >>> get("llada-8b").layers, get("llada-8b").attention
      (32, 'bidirectional')
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(PRESETS)}"
        raise ConfigError(f"preset {name!r}: there is no such network; {hint}")
    return PRESETS[name]


def fields(name: str) -> dict:
    """The same as fields of the ``model`` section of a run's configuration."""
    from mdlm_jax.config.model import from_transformer

    return from_transformer(get(name))


def _llama(vocab, layers, d_model, heads, kv_heads, d_ff, **changes) -> TransformerConfig:
    """A causal Llama: RMSNorm, SwiGLU, rotary, no bias; row i scores token i+1."""
    causal: dict[str, Any] = {"attention": "causal", "logit_shift": True}
    return TransformerConfig(vocab, vocab, layers, d_model, heads, kv_heads, d_ff, **(causal | changes))


def _opened(vocab, layers, d_model, heads, kv_heads, d_ff, **changes) -> TransformerConfig:
    """The same with everything visible and rows aligned."""
    opened = {"attention": "bidirectional", "logit_shift": False}
    return _llama(vocab, layers, d_model, heads, kv_heads, d_ff, **(opened | changes))


# MDLM's DiT: arXiv 2406.07524, configs of its repository; GPT-2's vocabulary and a mask. AdaLN that sees zero.
def _mdlm(layers, d_model, heads) -> TransformerConfig:
    return TransformerConfig(
        50258, 50258, layers, d_model, heads, heads, 4 * d_model, norm="layer", activation="gelu_tanh", mlp_bias=True,
        head_bias=True, conditioning="constant", condition_dim=128, time_features=256,
    )


# SMDM: arXiv 2410.18514, table of its lit_gpt/config.py: layers, heads, d_model, d_ff by millions of non-embedding
# parameters. The mask has a row of the table and no column of the head.
SMDM_SIZES = {
    6: (6, 4, 256, 1024), 19: (8, 6, 384, 1536), 34: (8, 8, 512, 2048), 48: (9, 9, 576, 2304),
    66: (10, 10, 640, 2560), 75: (16, 8, 640, 1600), 85: (13, 10, 640, 2560), 113: (12, 12, 768, 3072),
    142: (15, 12, 768, 3072), 170: (18, 12, 768, 3072), 180: (14, 14, 896, 3584), 206: (16, 14, 896, 3584),
    231: (18, 14, 896, 3584), 268: (16, 16, 1024, 4096), 302: (18, 16, 1024, 4096), 336: (20, 16, 1024, 4096),
    472: (18, 10, 1280, 5120), 551: (21, 10, 1280, 5120), 571: (18, 11, 1408, 5632), 629: (24, 10, 1280, 5120),
    666: (21, 11, 1408, 5632), 717: (19, 12, 1536, 6144), 761: (24, 11, 1408, 5632), 831: (22, 12, 1536, 6144),
    944: (25, 12, 1536, 6144), 1028: (20, 14, 1792, 7168), 1233: (24, 14, 1792, 7168), 1476: (22, 16, 2048, 8192),
    1678: (25, 16, 2048, 8192), 2121: (28, 17, 2176, 8704),
}


def _smdm(size) -> TransformerConfig:
    layers, heads, d_model, d_ff = SMDM_SIZES[size]
    return TransformerConfig(32001, 32000, layers, d_model, heads, heads, d_ff)


# LLaDA: arXiv 2502.09992 and 2505.19223 (1.5, the same network). iLLaDA: 2606.25331; its rotary base is not in the
# paper: LLaDA's is taken here, and a checkpoint's config.json has the last word.
_LLADA_8B = _opened(126464, 32, 4096, 32, 32, 12288, rope=RopeConfig(theta=500000.0))
_ILLADA_8B = _opened(155136, 32, 4096, 32, 8, 14336, rope=RopeConfig(theta=500000.0), tied=True)

# inclusionAI/LLaDA-MoE-7B-A1B; coefficients of its auxiliary losses from the paper.
_LLADA_MOE = _opened(
    157184, 16, 2048, 16, 16, 8192, head_dim=128, qk_norm=True, rope=RopeConfig(theta=50000.0),
    moe=MoEConfig(64, 8, 1024, balance_loss=0.01, z_loss=0.001),
)


# inclusionAI/LLaDA2.0 and 2.1, mini (16B) and flash (100B): blocks of 32.
def _llada2(layers, d_model, heads, d_ff, expert_d_ff) -> TransformerConfig:
    moe = MoEConfig(
        256, 8, expert_d_ff, shared_d_ff=expert_d_ff, router="sigmoid", selection_bias=True, groups=8, top_groups=4,
        normalize=True, scale=2.5, leading_dense=1,
    )
    return _opened(
        157184, layers, d_model, heads, 4, d_ff, head_dim=128, attention="block_causal", block_length=32, norm_eps=1e-6,
        qk_norm=True, rope=RopeConfig(theta=600000.0, fraction=0.5), moe=moe,
    )


# meta-llama: config.json of Meta-Llama-3-8B, Llama-3.1-8B, Llama-3.2-1B and 3B.
def _llama3(factor: float) -> RopeConfig:
    if factor == 1.0:
        return RopeConfig(theta=500000.0)
    return RopeConfig(theta=500000.0, scaling="llama3", factor=factor, original_length=8192)


# Qwen: config.json of Qwen/Qwen2-*, Qwen2.5-* and Qwen3-* (base models).
def _qwen2(layers, d_model, heads, kv_heads, d_ff, vocab=151936, **changes) -> TransformerConfig:
    shape = {"norm_eps": 1e-6, "qkv_bias": True, "rope": RopeConfig(theta=1e6), "tied": vocab == 151936}
    return _llama(vocab, layers, d_model, heads, kv_heads, d_ff, **(shape | changes))


def _qwen3(layers, d_model, heads, d_ff, tied=True) -> TransformerConfig:
    return _llama(151936, layers, d_model, heads, 8, d_ff, head_dim=128, norm_eps=1e-6, qk_norm=True,
                  rope=RopeConfig(theta=1e6), tied=tied)


# openai-community/gpt2*: config.json.
def _gpt2(layers, d_model, heads) -> TransformerConfig:
    return _llama(
        50257, layers, d_model, heads, heads, 4 * d_model, norm="layer", norm_bias=True, activation="gelu_tanh",
        qkv_bias=True, out_bias=True, mlp_bias=True, rope=RopeConfig(theta=0.0), learned_positions=1024, tied=True,
    )


_QWEN2 = {"0.5b": _qwen2(24, 896, 14, 2, 4864), "1.5b": _qwen2(28, 1536, 12, 2, 8960),
          "7b": _qwen2(28, 3584, 28, 4, 18944, vocab=152064)}

PRESETS: dict[str, TransformerConfig] = {
    "mdlm-small": _mdlm(12, 768, 12),
    "mdlm-medium": _mdlm(24, 1024, 16),
    **{f"smdm-{size}m": _smdm(size) for size in SMDM_SIZES},
    "llada-8b": _LLADA_8B,
    "llada-1.5": _LLADA_8B,
    "illada-8b": _ILLADA_8B,
    # Dream-org/Dream-v0-*-7B: arXiv 2508.15487; Qwen2.5-7B opened, its shift kept.
    "dream-7b": dataclasses.replace(_QWEN2["7b"], attention="bidirectional"),
    "llada-moe-7b-a1b": _LLADA_MOE,
    "llada2-mini": _llada2(20, 2048, 16, 5120, 512),
    "llada2-flash": _llada2(32, 4096, 32, 9216, 1024),
    "llama-3-8b": _llama(128256, 32, 4096, 32, 8, 14336, rope=_llama3(1.0)),
    "llama-3.1-8b": _llama(128256, 32, 4096, 32, 8, 14336, rope=_llama3(8.0)),
    "llama-3.2-1b": _llama(128256, 16, 2048, 32, 8, 8192, rope=_llama3(32.0), tied=True),
    "llama-3.2-3b": _llama(128256, 28, 3072, 24, 8, 8192, rope=_llama3(32.0), tied=True),
    **{f"qwen2-{size}": config for size, config in _QWEN2.items()},
    **{f"qwen2.5-{size}": config for size, config in _QWEN2.items()},
    "qwen2.5-3b": _qwen2(36, 2048, 16, 2, 11008),
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288, tied=False),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
