"""LLaDA-MoE-7B-A1B. Its ``config.json`` says model_type ``llada`` too; the fields tell the two apart."""

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.hf import llama
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule

PUBLISHED_VOCAB, PUBLISHED_MASK = 157184, 156895  # <|mask|>; not in the published config.json
_CODE = {
    "AutoConfig": "inclusionAI/LLaDA-MoE-7B-A1B-Instruct--configuration_lladamoe.LLaDAConfig",
    "AutoModel": "inclusionAI/LLaDA-MoE-7B-A1B-Instruct--modeling_lladamoe.LLaDAMoEModelLM",
    "AutoModelForCausalLM": "inclusionAI/LLaDA-MoE-7B-A1B-Instruct--modeling_lladamoe.LLaDAMoEModelLM",
}


def table(config: TransformerConfig) -> list[Rule]:
    """Llama's names, and the experts; the shared expert is a child of the layer, not of its ``mlp``."""
    layer = "model.layers.{layer}"
    rules = [rule for rule in llama.table(config) if config.dense_layers or "*/mlp/" not in rule.path]
    rules += [
        Rule(f"{layer}.mlp.gate.weight", "layers/moe/router", "X D -> D X"),
        *llama.feed_forward(f"{layer}.mlp.experts.{{expert}}", "layers/moe/"),
    ]
    assert config.moe is not None
    if config.moe.selection_bias:
        rules.append(Rule(f"{layer}.mlp.expert_bias", "layers/moe/router_bias", "X -> X"))
    if config.moe.shared_d_ff:
        rules += llama.feed_forward(f"{layer}.shared_expert", "layers/moe/shared_")
    return rules


def read(raw: dict) -> Description:
    f = Fields(raw)
    for name, *allowed in (
        ("hidden_act", "silu"), ("attention_bias", False), ("clip_qkv",), ("moe_router_score_function", "softmax"),
        ("norm_topk_prob", False), ("router_num_group",), ("router_topk_group",), ("sliding_window",),
    ):
        f.require(name, *allowed)
    layers, heads = f.whole("num_hidden_layers"), f.whole("num_attention_heads")
    biased = f.flag("moe_router_enable_expert_bias", False)
    length = f.whole("max_position_embeddings", 0)
    vocab = f.whole("vocab_size")
    moe = MoEConfig(
        experts=f.whole("num_experts"),
        per_token=f.whole("num_experts_per_tok"),
        d_ff=f.whole("expert_intermediate_size"),
        shared_d_ff=f.whole("shared_expert_intermediate_size", 0),
        selection_bias=biased,
        bias_in_weight=biased,
        scale=f.number("routed_scaling_factor", 1.0),
        balance_loss=f.number("router_aux_loss_coef", 0.0),
        leading_dense=_leading_dense(f.take("moe_layer_freq", [1] * layers), layers),
    )
    config = TransformerConfig(
        vocab_size=vocab,
        head_size=vocab,
        layers=layers,
        d_model=f.whole("hidden_size"),
        heads=heads,
        kv_heads=f.whole("num_key_value_heads", heads),
        d_ff=f.whole("dense_intermediate_size"),
        head_dim=f.whole("head_dim", 0),
        norm_eps=f.number("rms_norm_eps", 1e-5),
        qk_norm=f.flag("qk_layernorm", False),
        rope=f.rope(length),
        tied=f.flag("tie_word_embeddings", False),
        moe=moe,
    )
    ids = f.ids()
    if ids["mask_id"] is None and vocab == PUBLISHED_VOCAB:
        ids["mask_id"] = PUBLISHED_MASK
    f.finish()
    return Description(config, "llada_moe", **ids, max_length=length, dtype=f.stored_dtype())


def _leading_dense(frequency: list[int], layers: int) -> int:
    dense = frequency.count(0) if isinstance(frequency, list) else 0
    if frequency != [0] * dense + [1] * (layers - dense):
        raise ConfigError(f"config.json: moe_layer_freq={frequency!r} is not supported; it must list the layers, dense "
                          f"ones (0) first, and there are {layers} layers")
    return dense


def write(description: Description) -> dict:
    c, m = description.config, description.config.moe
    assert m is not None
    return {
        "architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "auto_map": _CODE,
        "vocab_size": c.vocab_size, "hidden_size": c.d_model, "dense_intermediate_size": c.d_ff,
        "expert_intermediate_size": m.d_ff, "shared_expert_intermediate_size": m.shared_d_ff or None,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim, "max_position_embeddings": description.max_length or 8192, "hidden_act": "silu",
        "num_experts": m.experts, "num_experts_per_tok": m.per_token, "routed_scaling_factor": m.scale,
        "moe_layer_freq": [0] * m.leading_dense + [1] * (c.layers - m.leading_dense),
        "moe_router_enable_expert_bias": m.selection_bias, "moe_router_score_function": m.router,
        "norm_topk_prob": None, "router_aux_loss_coef": m.balance_loss, "router_num_group": None,
        "router_topk_group": None, "qk_layernorm": c.qk_norm, "partial_rotary_factor": c.rope.fraction,
        "rope_theta": c.rope.theta, "rope_scaling": None, "rms_norm_eps": c.norm_eps, "attention_bias": False,
        "attention_dropout": 0.0, "clip_qkv": None, "output_router_logits": False, "initializer_range": 0.02,
        "tie_word_embeddings": c.tied, "use_cache": False, "torch_dtype": description.dtype,
        **id_fields(description),
    }


FAMILY = Family(
    name="llada_moe",
    matches=lambda raw: raw.get("model_type") in ("llada", "lladamoe") and "num_experts" in raw,
    read=read,
    write=write,
    tables=lambda config: [table(config)],
    harmless=llama.FAMILY.harmless,
    experts=True,
)
