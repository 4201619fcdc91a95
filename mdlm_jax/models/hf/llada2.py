"""LLaDA2.0 to 2.2, mini and flash: sigmoid-routed experts, fused query_key_value, block-causal attention.

Their ``config.json`` names neither the block length nor the mask; both are defaults of the model's ``generate``. No
field for the block-level routing of LLaDA2.2 is known either: ours stands in the section ``mdlm_jax``, as ``moe_block``
and ``moe_block_pool``, and other fields that speak of routing are refused.
"""

import dataclasses
import math

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.hf import llama
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule, fused

BLOCK_LENGTH = 32
PUBLISHED_VOCAB, PUBLISHED_MASK, PUBLISHED_EOS = 157184, 156895, 156892
_CODE = {
    "AutoConfig": "inclusionAI/LLaDA2.0-mini--configuration_llada2_moe.LLaDA2MoeConfig",
    "AutoModel": "inclusionAI/LLaDA2.0-mini--modeling_llada2_moe.LLaDA2MoeModel",
    "AutoModelForCausalLM": "inclusionAI/LLaDA2.0-mini--modeling_llada2_moe.LLaDA2MoeModelLM",
}


def tables(config: TransformerConfig) -> list[list[Rule]]:
    """One tensor an expert, as published; or all experts of a layer in one, as dFactory trains them."""
    layer, experts = "model.layers.{layer}", "model.layers.{layer}.mlp.experts"
    merged = [
        Rule(f"{experts}.gate_proj", "layers/moe/gate", "X F D -> X D F"),
        Rule(f"{experts}.up_proj", "layers/moe/up", "X F D -> X D F"),
        Rule(f"{experts}.down_proj", "layers/moe/down", "X D F -> X F D"),
    ]
    common = _common(config, layer)
    return [[*common, *llama.feed_forward(f"{experts}.{{expert}}", "layers/moe/")], [*common, *merged]]


def _common(config: TransformerConfig, layer: str) -> list[Rule]:
    attention = {"*/attention/query": "N", "*/attention/key": "K", "*/attention/value": "K"}
    rules = [
        Rule("model.word_embeddings.weight", "embedding", "V D -> V D"),
        Rule(f"{layer}.input_layernorm.weight", "*/attention_norm/scale", "D -> D"),
        *fused(f"{layer}.attention.query_key_value.weight", "(P H) D -> D P H", attention),
        Rule(f"{layer}.attention.dense.weight", "*/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.post_attention_layernorm.weight", "*/mlp_norm/scale", "D -> D"),
        Rule(f"{layer}.mlp.gate.weight", "layers/moe/router", "X D -> D X"),
        Rule("model.norm.weight", "final_norm/scale", "D -> D"),
    ]
    if config.dense_layers:
        rules += llama.feed_forward(f"{layer}.mlp", "dense_layers/mlp/")
    if config.qk_norm:
        rules += [
            Rule(f"{layer}.attention.query_layernorm.weight", "*/attention/query_norm", "H -> H"),
            Rule(f"{layer}.attention.key_layernorm.weight", "*/attention/key_norm", "H -> H"),
        ]
    assert config.moe is not None
    if config.moe.selection_bias:
        rules.append(Rule(f"{layer}.mlp.gate.expert_bias", "layers/moe/router_bias", "X -> X"))
    if config.moe.shared_d_ff:
        rules += llama.feed_forward(f"{layer}.mlp.shared_experts", "layers/moe/shared_")
    return rules if config.tied else [*rules, Rule("lm_head.weight", "head", "W D -> D W")]


def read(raw: dict) -> Description:
    f = Fields(raw)
    for name, *allowed in (
        ("hidden_act", "silu"), ("use_bias", False), ("use_qkv_bias", False), ("use_rmsnorm", True),
        ("norm_head", False), ("norm_softmax", False), ("score_function", "sigmoid"), ("norm_topk_prob", True),
        ("router_dtype", "fp32"), ("use_sliding_window", False), ("sliding_window",),
        ("using_split_qkv_in_self_attention", False),
    ):
        f.require(name, *allowed)
    heads, width = f.whole("num_attention_heads"), f.whole("moe_intermediate_size")
    length, vocab = f.whole("max_position_embeddings", 0), f.whole("vocab_size")
    ours = f.ours(moe_block=int, moe_block_pool=int)
    f.require("moe_shared_expert_intermediate_size", width)
    moe = MoEConfig(
        experts=f.whole("num_experts"),
        per_token=f.whole("num_experts_per_tok"),
        d_ff=width,
        shared_d_ff=width * f.whole("num_shared_experts", 0),
        router="sigmoid",
        selection_bias=f.flag("moe_router_enable_expert_bias", False),
        groups=f.whole("n_group", 1),
        top_groups=f.whole("topk_group", 1),
        normalize=True,
        scale=f.number("routed_scaling_factor", 1.0),
        block=ours.get("moe_block", 0),
        block_pool=ours.get("moe_block_pool", 0),
        leading_dense=f.whole("first_k_dense_replace", 0),
    )
    config = TransformerConfig(
        vocab_size=vocab,
        head_size=vocab,
        layers=f.whole("num_hidden_layers"),
        d_model=f.whole("hidden_size"),
        heads=heads,
        kv_heads=f.whole("num_key_value_heads", heads),
        d_ff=f.whole("intermediate_size"),
        head_dim=f.whole("head_dim", 0),
        attention="block_causal",
        block_length=f.whole("block_length", BLOCK_LENGTH),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        qk_norm=f.flag("use_qk_norm", False),
        rope=f.rope(length),
        tied=f.flag("tie_word_embeddings", False),
        moe=moe,
    )
    config = _rotated(config, f.whole("rotary_dim", None), raw.get("partial_rotary_factor") is not None)
    ids = f.ids() | {"delete_id": f.one_id("delete_token_id"), "insert_id": f.one_id("split_token_id")}
    if vocab == PUBLISHED_VOCAB:
        ids["mask_id"] = PUBLISHED_MASK if ids["mask_id"] is None else ids["mask_id"]
        ids["eos_id"] = PUBLISHED_EOS if ids["eos_id"] is None else ids["eos_id"]
    f.finish()
    return Description(config, "llada2", **ids, max_length=length, dtype=f.stored_dtype())


def _rotated(config: TransformerConfig, width: int | None, fraction_is_said: bool) -> TransformerConfig:
    """``rotary_dim`` and ``partial_rotary_factor`` say the same; one of them is enough."""
    if width is None or width == config.rotary_dim:
        return config
    if fraction_is_said:
        raise ConfigError(f"config.json: rotary_dim={width} contradicts partial_rotary_factor={config.rope.fraction} "
                          f"of head_dim={config.head_dim}, which makes {config.rotary_dim}; leave one of them out")
    if not 0 < width <= config.head_dim:
        raise ConfigError(f"config.json: rotary_dim={width} must lie in [1, head_dim={config.head_dim}]")
    fraction = width / config.head_dim
    fraction = fraction if int(fraction * config.head_dim) == width else math.nextafter(fraction, 1.0)
    return dataclasses.replace(config, rope=dataclasses.replace(config.rope, fraction=fraction))


def write(description: Description) -> dict:
    c, m = description.config, description.config.moe
    assert m is not None
    raw = {
        "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "auto_map": _CODE,
        "vocab_size": c.vocab_size, "hidden_size": c.d_model, "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim, "hidden_act": "silu", "use_bias": False, "use_qkv_bias": False, "use_rmsnorm": True,
        "rms_norm_eps": c.norm_eps, "use_qk_norm": c.qk_norm, "block_length": c.block_length,
        "partial_rotary_factor": c.rope.fraction, "rotary_dim": c.rotary_dim, "rope_theta": c.rope.theta,
        "rope_scaling": None, "max_position_embeddings": description.max_length or 32768,
        "moe_intermediate_size": m.d_ff, "num_experts": m.experts, "num_experts_per_tok": m.per_token,
        "num_shared_experts": m.shared_d_ff // m.d_ff, "n_group": m.groups, "topk_group": m.top_groups,
        "first_k_dense_replace": m.leading_dense, "routed_scaling_factor": m.scale, "score_function": m.router,
        "norm_topk_prob": True, "moe_router_enable_expert_bias": m.selection_bias, "router_dtype": "fp32",
        "norm_head": False, "norm_softmax": False, "attention_dropout": 0.0, "embedding_dropout": 0.0,
        "output_dropout": 0.0, "initializer_range": 0.02, "output_router_logits": False, "use_cache": False,
        "use_sliding_window": False, "tie_word_embeddings": c.tied, "torch_dtype": description.dtype,
        **id_fields(description),
    }
    edits = {"delete_token_id": description.delete_id, "split_token_id": description.insert_id}  # LLaDA2.2
    raw |= {name: value for name, value in edits.items() if value is not None}
    return raw | {"mdlm_jax": {"moe_block": m.block, "moe_block_pool": m.block_pool}} if m.block else raw


FAMILY = Family(
    name="llada2",
    matches=lambda raw: raw.get("model_type") in ("llada2_moe", "llada2_moe_veomni"),
    read=read,
    write=write,
    tables=tables,
    harmless=(r"model\.rotary_emb\.inv_freq", r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq"),
    experts=True,
)
