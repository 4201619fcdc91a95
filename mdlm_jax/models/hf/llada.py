"""LLaDA-8B, LLaDA-1.5 and iLLaDA-8B: names and fields of OLMo (spec: arXiv 2502.09992 and its model code)."""

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import RopeConfig, TransformerConfig
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule

_CODE = {
    "AutoConfig": "GSAI-ML/LLaDA-8B-Instruct--configuration_llada.LLaDAConfig",
    "AutoModel": "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM",
}


def table(config: TransformerConfig) -> list[Rule]:
    """``ff_proj`` is the branch that goes through the SiLU; ``ff_out`` names the head and each block's way down."""
    root, block = "model.transformer", "model.transformer.blocks.{layer}"
    rules = [
        Rule(f"{root}.wte.weight", "embedding", "V D -> V D"),
        Rule(f"{block}.attn_norm.weight", "*/attention_norm/scale", "D -> D"),
        Rule(f"{block}.q_proj.weight", "*/attention/query", "(N H) D -> D N H"),
        Rule(f"{block}.k_proj.weight", "*/attention/key", "(K H) D -> D K H"),
        Rule(f"{block}.v_proj.weight", "*/attention/value", "(K H) D -> D K H"),
        Rule(f"{block}.attn_out.weight", "*/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.ff_norm.weight", "*/mlp_norm/scale", "D -> D"),
        Rule(f"{block}.ff_proj.weight", "*/mlp/gate", "F D -> D F"),
        Rule(f"{block}.up_proj.weight", "*/mlp/up", "F D -> D F"),
        Rule(f"{block}.ff_out.weight", "*/mlp/down", "D F -> F D"),
        Rule(f"{root}.ln_f.weight", "final_norm/scale", "D -> D"),
    ]
    return rules if config.tied else [*rules, Rule(f"{root}.ff_out.weight", "head", "W D -> D W")]


def read(raw: dict) -> Description:
    """The switches of OLMo that no published model turns are refused."""
    f = Fields(raw)
    for name, *allowed in (
        ("activation_type", "silu"), ("block_type", "llama"), ("block_group_size", 1), ("layer_norm_type", "rms"),
        ("layer_norm_with_affine", True), ("rope", True), ("alibi", False), ("include_bias", False),
        ("include_qkv_bias", False), ("bias_for_layer_norm", False), ("attention_layer_norm", False),
        ("scale_logits", False), ("input_emb_norm", False), ("clip_qkv",), ("multi_query_attention", False),
        ("rope_scaling",), ("sliding_window",), ("rope_interleaved", False),
    ):
        f.require(name, *allowed)
    for name in ("alibi_bias_max", "attention_layer_norm_with_affine", "mlp_ratio", "rope_full_precision"):
        f.take(name, None)  # without effect, given the above
    vocab = f.whole("vocab_size")
    rows = f.whole("embedding_size", vocab)
    if rows < vocab:
        raise ConfigError(f"config.json: embedding_size={rows}: must be at least vocab_size={vocab}")
    heads, length = f.whole("n_heads"), f.whole("max_sequence_length", 0)
    config = TransformerConfig(
        vocab_size=rows,
        head_size=rows,
        layers=f.whole("n_layers"),
        d_model=f.whole("d_model"),
        heads=heads,
        kv_heads=f.whole("n_kv_heads", heads),
        d_ff=f.whole("mlp_hidden_size"),
        norm_eps=f.number("rms_norm_eps", 1e-5),
        rope=RopeConfig(theta=f.number("rope_theta", 10000.0)),
        tied=f.flag("weight_tying", False),
    )
    ids = f.ids()
    f.finish()
    return Description(config, "llada", **ids, max_length=length, dtype=f.stored_dtype())


def write(description: Description) -> dict:
    c = description.config
    return {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "auto_map": _CODE,
        "activation_type": "silu", "block_type": "llama", "block_group_size": 1, "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "attention_layer_norm": False, "bias_for_layer_norm": False,
        "include_bias": False, "include_qkv_bias": False, "scale_logits": False, "input_emb_norm": False,
        "alibi": False, "alibi_bias_max": 8.0, "rope": True, "rope_full_precision": True, "flash_attention": False,
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "residual_dropout": 0.0, "multi_query_attention": None,
        "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "precision": "amp_bf16", "use_cache": False,
        "rope_theta": c.rope.theta, "rms_norm_eps": c.norm_eps, "weight_tying": c.tied,
        "d_model": c.d_model, "n_layers": c.layers, "n_heads": c.heads, "n_kv_heads": c.kv_heads,
        "mlp_ratio": 4, "mlp_hidden_size": c.d_ff, "vocab_size": c.vocab_size, "embedding_size": c.vocab_size,
        "max_sequence_length": description.max_length or 4096, "torch_dtype": description.dtype,
        **id_fields(description),
    }


FAMILY = Family(
    name="llada",
    matches=lambda raw: raw.get("model_type") == "llada" and "n_layers" in raw,
    read=read,
    write=write,
    tables=lambda config: [table(config)],
)
