"""Llama, Qwen2, Qwen3 and Dream: one table. The causal ones score the next token: row i is for token i+1.

A causal base that was made a diffusion model here (`models.adapt`) is written as model_type ``a2d-llama`` and its like,
so that no program takes it for a causal one; what differs stands in the section ``mdlm_jax`` of its ``config.json``.
"""

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import adapted
from mdlm_jax.models.hf.fields import Fields, id_fields, rope_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "Dream": "DreamModel",
}
_DREAM_CODE = {
    "AutoConfig": "Dream-org/Dream-v0-Instruct-7B--configuration_dream.DreamConfig",
    "AutoModel": "Dream-org/Dream-v0-Instruct-7B--modeling_dream.DreamModel",
}


def table(config: TransformerConfig) -> list[Rule]:
    """Names of the Llama family in transformers."""
    layer, attention, mlp = "model.layers.{layer}", "model.layers.{layer}.self_attn", "model.layers.{layer}.mlp"
    rules = [
        Rule("model.embed_tokens.weight", "embedding", "V D -> V D"),
        Rule(f"{layer}.input_layernorm.weight", "*/attention_norm/scale", "D -> D"),
        Rule(f"{attention}.q_proj.weight", "*/attention/query", "(N H) D -> D N H"),
        Rule(f"{attention}.k_proj.weight", "*/attention/key", "(K H) D -> D K H"),
        Rule(f"{attention}.v_proj.weight", "*/attention/value", "(K H) D -> D K H"),
        Rule(f"{attention}.o_proj.weight", "*/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.post_attention_layernorm.weight", "*/mlp_norm/scale", "D -> D"),
        *feed_forward(mlp, "*/mlp/"),
        Rule("model.norm.weight", "final_norm/scale", "D -> D"),
    ]
    if config.qkv_bias:
        rules += [
            Rule(f"{attention}.q_proj.bias", "*/attention/query_bias", "(N H) -> N H"),
            Rule(f"{attention}.k_proj.bias", "*/attention/key_bias", "(K H) -> K H"),
            Rule(f"{attention}.v_proj.bias", "*/attention/value_bias", "(K H) -> K H"),
        ]
    if config.out_bias:
        rules.append(Rule(f"{attention}.o_proj.bias", "*/attention/out_bias", "D -> D"))
    if config.qk_norm:
        rules += [
            Rule(f"{attention}.q_norm.weight", "*/attention/query_norm", "H -> H"),
            Rule(f"{attention}.k_norm.weight", "*/attention/key_norm", "H -> H"),
        ]
    if not config.tied:
        rules.append(Rule("lm_head.weight", "head", "W D -> D W"))
    return rules


def feed_forward(prefix: str, path: str) -> list[Rule]:
    """The three matrices of a SwiGLU under their usual names."""
    return [
        Rule(f"{prefix}.gate_proj.weight", f"{path}gate", "F D -> D F"),
        Rule(f"{prefix}.up_proj.weight", f"{path}up", "F D -> D F"),
        Rule(f"{prefix}.down_proj.weight", f"{path}down", "D F -> F D"),
    ]


def read(raw: dict) -> Description:
    """Llama, Qwen2, Qwen3, Dream and our adapted forms of the first three."""
    f, kind = Fields(raw), adapted.base(raw)
    heads, d_model = f.whole("num_attention_heads"), f.whole("hidden_size")
    f.require("hidden_act", "silu")
    f.require("mlp_bias", False)
    f.require("use_sliding_window", False)
    f.require("use_mrope", False)
    if kind == "llama":
        f.require("sliding_window")
    else:
        f.take("sliding_window", None)
    f.require("layer_types", ["full_attention"] * f.whole("num_hidden_layers"))
    everywhere = f.flag("attention_bias", False)
    length = f.whole("max_position_embeddings", 0)
    changes = adapted.read(f, raw)
    rope = f.rope(length)
    config = TransformerConfig(
        vocab_size=f.whole("vocab_size"),
        head_size=changes.get("head_size", f.whole("vocab_size")),
        layers=f.whole("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=f.whole("num_key_value_heads", heads),
        d_ff=f.whole("intermediate_size"),
        head_dim=f.whole("head_dim", 128 if kind == "qwen3" else 0),
        attention=changes.get("attention", "bidirectional" if kind == "Dream" else "causal"),
        block_length=changes.get("block_length", 1),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        qkv_bias=kind in ("qwen2", "Dream") or everywhere,
        out_bias=kind in ("llama", "qwen3") and everywhere,
        qk_norm=kind == "qwen3",
        rope=rope,
        tied=f.flag("tie_word_embeddings", False),
        logit_shift=changes.get("logit_shift", True),
    )
    ids = f.ids()
    f.finish()
    return Description(config, "llama", **ids, max_length=length, dtype=f.stored_dtype())


def write(description: Description) -> dict:
    """``config.json`` of the nearest of the four; `families` refuses what none of them can say."""
    c = description.config
    plain = adapted.is_causal(c)
    kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias and not c.out_bias else "llama"
    if kind == "qwen2" and (c.attention, c.logit_shift, c.head_size) == ("bidirectional", True, c.vocab_size):
        kind, plain = "Dream", True
    raw = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "max_position_embeddings": description.max_length or 2048,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "torch_dtype": description.dtype,
        **rope_fields(c.rope, modern=kind != "Dream"),
        **id_fields(description),
    }
    if kind in ("llama", "qwen3"):
        raw |= {"head_dim": c.head_dim, "attention_bias": c.qkv_bias}
    if kind == "Dream":
        raw |= {"auto_map": _DREAM_CODE, "use_sliding_window": False, "use_mrope": False, "max_window_layers": c.layers}
    return raw if plain else raw | adapted.fields(c, kind)


FAMILY = Family(
    name="llama",
    matches=lambda raw: adapted.base(raw) in _ARCHITECTURES,
    read=read,
    write=write,
    tables=lambda config: [table(config)],
    harmless=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq"),
)
