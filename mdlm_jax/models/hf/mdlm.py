"""MDLM's DiT (arXiv 2406.07524), as published for transformers: AdaLN whose condition sees sigma = 0."""

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.fields import Fields, id_fields
from mdlm_jax.models.hf.rules import Description, Family, Rule, fused

_CODE = {
    "AutoConfig": "kuleshov-group/mdlm-owt--configuration_mdlm.MDLMConfig",
    "AutoModelForMaskedLM": "kuleshov-group/mdlm-owt--modeling_mdlm.MDLM",
}


def table(config: TransformerConfig) -> list[Rule]:
    """``mlp.0`` and ``mlp.2`` stand around the activation; modulation rows are shift, scale, gate, twice."""
    block, last = "backbone.blocks.{layer}", "backbone.output_layer"
    parts = {"*/attention/query": "N", "*/attention/key": "N", "*/attention/value": "N"}
    return [
        Rule("backbone.vocab_embed.embedding", "embedding", "V D -> V D"),
        Rule("backbone.sigma_map.mlp.0.weight", "time/first", "C T -> T C"),
        Rule("backbone.sigma_map.mlp.0.bias", "time/first_bias", "C -> C"),
        Rule("backbone.sigma_map.mlp.2.weight", "time/second", "B C -> C B"),
        Rule("backbone.sigma_map.mlp.2.bias", "time/second_bias", "C -> C"),
        Rule(f"{block}.norm1.weight", "*/attention_norm/scale", "D -> D"),
        *fused(f"{block}.attn_qkv.weight", "(P H) D -> D P H", parts),
        Rule(f"{block}.attn_out.weight", "*/attention/out", "D (N H) -> N H D"),
        Rule(f"{block}.norm2.weight", "*/mlp_norm/scale", "D -> D"),
        Rule(f"{block}.mlp.0.weight", "*/mlp/up", "F D -> D F"),
        Rule(f"{block}.mlp.0.bias", "*/mlp/up_bias", "F -> F"),
        Rule(f"{block}.mlp.2.weight", "*/mlp/down", "D F -> F D"),
        Rule(f"{block}.mlp.2.bias", "*/mlp/down_bias", "D -> D"),
        Rule(f"{block}.adaLN_modulation.weight", "*/modulation/kernel", "(S D) C -> C S D"),
        Rule(f"{block}.adaLN_modulation.bias", "*/modulation/bias", "(S D) -> S D"),
        Rule(f"{last}.norm_final.weight", "final_norm/scale", "D -> D"),
        Rule(f"{last}.adaLN_modulation.weight", "final_modulation/kernel", "(E D) C -> C E D"),
        Rule(f"{last}.adaLN_modulation.bias", "final_modulation/bias", "(E D) -> E D"),
        Rule(f"{last}.linear.weight", "head", "W D -> D W"),
        Rule(f"{last}.linear.bias", "head_bias", "W -> W"),
    ]


def read(raw: dict) -> Description:
    """The mask is the last id. Networks that read their noise level are refused: theirs is sigma, ours is the time."""
    f = Fields(raw)
    f.require("time_conditioning", False)
    f.require("cross_attn", False)
    f.require("causal", False)
    d_model, heads, vocab = f.whole("hidden_dim"), f.whole("n_heads"), f.whole("vocab_size")
    f.take("dropout", None)
    length = f.whole("model_length", 0)
    config = TransformerConfig(
        vocab_size=vocab,
        head_size=vocab,
        layers=f.whole("n_blocks"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        d_ff=4 * d_model,
        norm="layer",
        norm_eps=1e-5,
        activation="gelu_tanh",
        mlp_bias=True,
        head_bias=True,
        conditioning="constant",
        condition_dim=f.whole("cond_dim"),
        time_features=256,
    )
    ids = f.ids()
    ids["mask_id"] = vocab - 1 if ids["mask_id"] is None else ids["mask_id"]
    f.finish()
    return Description(config, "mdlm", **ids, max_length=length, dtype=f.stored_dtype())


def write(description: Description) -> dict:
    c = description.config
    return {
        "architectures": ["MDLM"], "model_type": "mdlm", "auto_map": _CODE, "vocab_size": c.vocab_size,
        "model_length": description.max_length or 1024, "hidden_dim": c.d_model, "cond_dim": c.condition_dim,
        "n_blocks": c.layers, "n_heads": c.heads, "dropout": 0.1, "time_conditioning": False,
        "torch_dtype": description.dtype, **id_fields(description),
    }


FAMILY = Family(
    name="mdlm",
    matches=lambda raw: raw.get("model_type") == "mdlm",
    read=read,
    write=write,
    tables=lambda config: [table(config)],
    harmless=(r"backbone\.rotary_emb\.inv_freq",),
)
