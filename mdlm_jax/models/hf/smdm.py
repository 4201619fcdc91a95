"""SMDM (arXiv 2410.18514): names of lit-gpt, query, key and value interleaved by key/value group.

The published files are bare safetensors, and the number of heads cannot be told from shapes: convert them with
``launch.convert --preset=smdm-1028m``, or put a ``config.json`` with the fields below beside them.
"""

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import RopeConfig, TransformerConfig
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule, fused


def table(config: TransformerConfig) -> list[Rule]:
    """``w1`` is the branch that goes through the SiLU, ``w3`` the way down."""
    block = "transformer.h.{layer}"
    parts = {"*/attention/query": "G", "*/attention/key": "U", "*/attention/value": "U"}
    return [
        Rule("transformer.wte.weight", "embedding", "V D -> V D"),
        Rule(f"{block}.norm_1.weight", "*/attention_norm/scale", "D -> D"),
        *fused(f"{block}.attn.attn.weight", "(K P H) D -> D (K P) H", parts),
        Rule(f"{block}.attn.proj.weight", "*/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.norm_2.weight", "*/mlp_norm/scale", "D -> D"),
        Rule(f"{block}.mlp.swiglu.w1.weight", "*/mlp/gate", "F D -> D F"),
        Rule(f"{block}.mlp.swiglu.w2.weight", "*/mlp/up", "F D -> D F"),
        Rule(f"{block}.mlp.swiglu.w3.weight", "*/mlp/down", "D F -> F D"),
        Rule("transformer.ln_f.weight", "final_norm/scale", "D -> D"),
        Rule("lm_head.weight", "head", "W D -> D W"),
    ]


def read(raw: dict) -> Description:
    """The mask is the row after the last column of the head."""
    f = Fields(raw)
    heads, columns = f.whole("n_head"), f.whole("padded_vocab_size")
    rows = f.whole("embedding_rows", columns + 1)
    if rows < columns:
        raise ConfigError(f"config.json: embedding_rows={rows}: must be at least padded_vocab_size={columns}")
    length = f.whole("block_size", 0)
    config = TransformerConfig(
        vocab_size=rows,
        head_size=columns,
        layers=f.whole("n_layer"),
        d_model=f.whole("n_embd"),
        heads=heads,
        kv_heads=f.whole("n_query_groups", heads),
        d_ff=f.whole("intermediate_size"),
        norm_eps=f.number("norm_eps", 1e-5),
        rope=RopeConfig(theta=10000.0),
    )
    ids = f.ids()
    if ids["mask_id"] is None and rows == columns + 1:
        ids["mask_id"] = columns
    f.finish()
    return Description(config, "smdm", **ids, max_length=length, dtype=f.stored_dtype())


def write(description: Description) -> dict:
    c = description.config
    return {
        "model_type": "smdm", "block_size": description.max_length or 2048, "padded_vocab_size": c.head_size,
        "embedding_rows": c.vocab_size, "n_layer": c.layers, "n_head": c.heads, "n_embd": c.d_model,
        "n_query_groups": c.kv_heads, "intermediate_size": c.d_ff, "norm_eps": c.norm_eps,
        "torch_dtype": description.dtype, **id_fields(description),
    }


FAMILY = Family(
    name="smdm",
    matches=lambda raw: raw.get("model_type") == "smdm",
    read=read,
    write=write,
    tables=lambda config: [table(config)],
)
