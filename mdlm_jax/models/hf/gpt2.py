"""GPT-2, causal or opened. Its matrices are stored [in, out], query, key and value side by side in ``c_attn``."""

from mdlm_jax.models.config import RopeConfig, TransformerConfig
from mdlm_jax.models.hf import adapted
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule, fused

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def tables(config: TransformerConfig) -> list[list[Rule]]:
    """With the prefix that transformers writes, and without it, as the first published files are."""
    return [_table(prefix) for prefix in ("transformer.", "")]


def _table(prefix: str) -> list[Rule]:
    block = prefix + "h.{layer}"
    parts = {"*/attention/query": "N", "*/attention/key": "N", "*/attention/value": "N"}
    return [
        Rule(f"{prefix}wte.weight", "embedding", "V D -> V D"),
        Rule(f"{prefix}wpe.weight", "positions", "L D -> L D"),
        *_norm(f"{block}.ln_1", "*/attention_norm"),
        *fused(f"{block}.attn.c_attn.weight", "D (P H) -> D P H", parts),
        *fused(f"{block}.attn.c_attn.bias", "(P H) -> P H", {f"{path}_bias": size for path, size in parts.items()}),
        Rule(f"{block}.attn.c_proj.weight", "*/attention/out", "(N H) D -> N H D"),
        Rule(f"{block}.attn.c_proj.bias", "*/attention/out_bias", "D -> D"),
        *_norm(f"{block}.ln_2", "*/mlp_norm"),
        Rule(f"{block}.mlp.c_fc.weight", "*/mlp/up", "D F -> D F"),
        Rule(f"{block}.mlp.c_fc.bias", "*/mlp/up_bias", "F -> F"),
        Rule(f"{block}.mlp.c_proj.weight", "*/mlp/down", "F D -> F D"),
        Rule(f"{block}.mlp.c_proj.bias", "*/mlp/down_bias", "D -> D"),
        *_norm(f"{prefix}ln_f", "final_norm"),
    ]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/scale", "D -> D"), Rule(f"{name}.bias", f"{path}/bias", "D -> D")]


def read(raw: dict) -> Description:
    """GPT-2 and our adapted forms of it."""
    f = Fields(raw)
    f.require("scale_attn_weights", True)
    f.require("scale_attn_by_inverse_layer_idx", False)
    f.require("add_cross_attention", False)
    f.require("tie_word_embeddings", True)
    f.require("activation_function", *_ACTIVATIONS)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx", "layer_norm_eps",
                 "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
                 "summary_use_proj"):
        f.take(name, None)  # dropout, and heads of other tasks
    d_model, heads, length = f.whole("n_embd"), f.whole("n_head"), f.whole("n_positions")
    changes = adapted.read(f, raw)
    config = TransformerConfig(
        vocab_size=f.whole("vocab_size"),
        head_size=changes.get("head_size", f.whole("vocab_size")),
        layers=f.whole("n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        d_ff=f.whole("n_inner", 4 * d_model),
        attention=changes.get("attention", "causal"),
        block_length=changes.get("block_length", 1),
        norm="layer",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        activation=_ACTIVATIONS[f.take("activation_function", "gelu_new")],
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        rope=RopeConfig(theta=0.0),
        learned_positions=length,
        tied=True,
        logit_shift=changes.get("logit_shift", True),
    )
    ids = f.ids()
    f.finish()
    return Description(config, "gpt2", **ids, max_length=length, dtype=f.stored_dtype())


def write(description: Description) -> dict:
    c = description.config
    raw = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size, "n_embd": c.d_model,
        "n_layer": c.layers, "n_head": c.heads, "n_inner": c.d_ff, "n_positions": c.learned_positions,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": c.norm_eps, "scale_attn_weights": True, "tie_word_embeddings": True,
        "torch_dtype": description.dtype, **id_fields(description),
    }
    return raw if adapted.is_causal(c) else raw | adapted.fields(c, "gpt2")


FAMILY = Family(
    name="gpt2",
    matches=lambda raw: adapted.base(raw) == "gpt2",
    read=read,
    write=write,
    tables=tables,
    harmless=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\.weight"),
)
