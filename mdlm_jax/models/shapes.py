"""The parameter tree of a configuration as names and shapes, by formula and free of jax.

The table in this package's README, written as code: what a checkpoint must hold can be listed and counted without
tracing a network. A test compares it with ``api.abstract``.
"""

import math

from mdlm_jax.models.config import TransformerConfig

Shapes = dict[str, tuple[int, ...]]


def shapes(config: TransformerConfig) -> Shapes:
    """Every leaf as ``"layers/attention/query": (layers, D, N, H)``."""
    c = config
    tree: Shapes = {"embedding": (c.vocab_size, c.d_model)}
    if c.learned_positions:
        tree["positions"] = (c.learned_positions, c.d_model)
    if c.conditioning != "none":
        tree |= _time(c)
    if c.classes:
        tree["classes"] = (c.classes + 1, c.condition_dim)
    if c.latent:
        tree |= _under("latent", {"first": (2, c.latent, c.d_model), "bias": (c.d_model,),
                                  "second": (c.d_model, c.d_model)})
    for name, expert, first, last in stacks(c):
        of_layer = _layer(c) | _under("moe", _experts(c)) if expert else _layer(c) | _under("mlp", _feed_forward(c))
        tree |= {f"{name}/{path}": (last - first, *shape) for path, shape in of_layer.items()}
    tree |= _under("final_norm", _norm(c))
    if c.conditioning != "none":
        tree |= _under("final_modulation", _modulation(c, 2))
    if not c.tied:
        tree["head"] = (c.d_model, c.head_size)
    if c.head_bias:
        tree["head_bias"] = (c.head_size,)
    return tree


def parameter_count(config: TransformerConfig) -> int:
    """All parameters; a tied head counts once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def layer_parameter_count(config: TransformerConfig) -> int:
    """Non-embedding parameters as scaling laws count them: the layers and the final norm, no embedding and no head."""
    counted = ("layers/", "dense_layers/", "final_norm/", "final_modulation/", "time/", "latent/")
    return sum(math.prod(shape) for path, shape in shapes(config).items() if path.startswith(counted))


def active_parameter_count(config: TransformerConfig) -> int:
    """Parameters that a token meets: all, less the experts it does not visit."""
    total = parameter_count(config)
    if config.moe is None:
        return total
    idle = config.moe.experts - config.moe.per_token
    return total - (config.layers - config.dense_layers) * idle * 3 * config.d_model * config.moe.d_ff


def stacks(config: TransformerConfig) -> list[tuple[str, bool, int, int]]:
    """Name, whether its layers are experts, first and last layer (exclusive), of each stack of equal layers."""
    if config.moe is None:
        return [("layers", False, 0, config.layers)]
    dense = config.dense_layers
    leading = [("dense_layers", False, 0, dense)] if dense else []
    return [*leading, ("layers", True, dense, config.layers)]


def _under(name: str, tree: Shapes) -> Shapes:
    return {f"{name}/{path}": shape for path, shape in tree.items()}


def _norm(c: TransformerConfig) -> Shapes:
    tree: Shapes = {"scale": (c.d_model,)}
    return tree | ({"bias": (c.d_model,)} if c.norm_bias else {})


def _time(c: TransformerConfig) -> Shapes:
    width = c.condition_dim
    return _under("time", {"first": (c.time_features, width), "first_bias": (width,),
                           "second": (width, width), "second_bias": (width,)})


def _modulation(c: TransformerConfig, parts: int) -> Shapes:
    return {"kernel": (c.condition_dim, parts, c.d_model), "bias": (parts, c.d_model)}


def _layer(c: TransformerConfig) -> Shapes:
    """Everything of a layer but its feed-forward branch."""
    tree = _under("attention_norm", _norm(c)) | _under("attention", _attention(c)) | _under("mlp_norm", _norm(c))
    return tree | (_under("modulation", _modulation(c, 6)) if c.conditioning != "none" else {})


def _attention(c: TransformerConfig) -> Shapes:
    tree: Shapes = {"query": (c.d_model, c.heads, c.head_dim), "out": (c.heads, c.head_dim, c.d_model)}
    tree |= {name: (c.d_model, c.kv_heads, c.head_dim) for name in ("key", "value")}
    if c.qkv_bias:
        tree |= {"query_bias": (c.heads, c.head_dim)}
        tree |= {f"{name}_bias": (c.kv_heads, c.head_dim) for name in ("key", "value")}
    if c.out_bias:
        tree["out_bias"] = (c.d_model,)
    if c.qk_norm:
        tree |= {"query_norm": (c.head_dim,), "key_norm": (c.head_dim,)}
    return tree


def _feed_forward(c: TransformerConfig) -> Shapes:
    tree: Shapes = {"up": (c.d_model, c.d_ff), "down": (c.d_ff, c.d_model)}
    if c.activation == "swiglu":
        tree["gate"] = (c.d_model, c.d_ff)
    if c.mlp_bias:
        tree |= {"up_bias": (c.d_ff,), "down_bias": (c.d_model,)}
    return tree


def _experts(c: TransformerConfig) -> Shapes:
    m = c.moe
    assert m is not None
    tree: Shapes = {"router": (c.d_model, m.experts), "gate": (m.experts, c.d_model, m.d_ff),
                    "up": (m.experts, c.d_model, m.d_ff), "down": (m.experts, m.d_ff, c.d_model)}
    if m.selection_bias or m.bias_in_weight:
        tree["router_bias"] = (m.experts,)
    if m.shared_d_ff:
        tree |= {"shared_gate": (c.d_model, m.shared_d_ff), "shared_up": (c.d_model, m.shared_d_ff),
                 "shared_down": (m.shared_d_ff, c.d_model)}
    return tree
