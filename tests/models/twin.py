"""The Transformer once more, in float64 numpy: one token pair, one head at a time, straight from the definitions."""

import math

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x, tanh):
    if tanh:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rms(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def norm(config, w, x):
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return rms(x, w["scale"], config.norm_eps) + (w["bias"] if config.norm_bias else 0.0)


def rotate(config, x, positions):
    """Component pairs turn by position * theta^(-2i/R); x [B, L, N, H]."""
    size = int(config.head_dim * config.rope.fraction)
    out = x.copy()
    for i in range(size // 2):
        first, second = (2 * i, 2 * i + 1) if config.rope.interleaved else (i, i + size // 2)
        angle = positions[:, :, None] * config.rope.theta ** (-2 * i / size)
        out[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
        out[..., second] = x[..., second] * np.cos(angle) + x[..., first] * np.sin(angle)
    return out


def sees(config, query, key, order, length):
    """Whether token ``query`` of a row sees token ``key`` by contract; ``order``: one number a token of that row."""
    n = config.block_length
    if config.attention == "bidirectional":
        return True
    if config.attention == "two_stream":
        own, other = order[query] // n, order[key] // n
        noisy_query, noisy_key = query < length // 2, key < length // 2
        if noisy_query:
            return own == other if noisy_key else other < own
        return not noisy_key and other <= own
    if config.attention == "block_causal":
        return order[key] // n <= order[query] // n
    return order[key] <= order[query]


def visible(config, segments, order):
    rows, length = segments.shape
    table = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for query in range(length):
            for key in range(length):
                same = segments[row, query] == segments[row, key] != 0
                table[row, query, key] = same and sees(config, query, key, order[row], length)
    return table


def attention(config, w, x, positions, seen):
    """Query head n uses key/value head n // (heads / kv_heads)."""
    q, k, v = (np.einsum("bld,dnh->blnh", x, w[name]) for name in ("query", "key", "value"))
    if config.qkv_bias:
        q, k, v = q + w["query_bias"], k + w["key_bias"], v + w["value_bias"]
    if config.qk_norm:
        q, k = rms(q, w["query_norm"], config.norm_eps), rms(k, w["key_norm"], config.norm_eps)
    if config.rope.theta:
        q, k = rotate(config, q, positions), rotate(config, k, positions)
    out = np.zeros(x.shape[:2] + w["out"].shape[-1:])
    for head in range(config.heads):
        shared = head // (config.heads // config.kv_heads)
        score = np.einsum("blh,bmh->blm", q[:, :, head], k[:, :, shared]) / np.sqrt(config.head_dim)
        weight = np.exp(score - score.max(-1, keepdims=True)) * seen
        weight /= np.maximum(weight.sum(-1, keepdims=True), 1e-300)
        out += np.einsum("blm,bmh,hd->bld", weight, v[:, :, shared], w["out"][head])
    return out + (w["out_bias"] if config.out_bias else 0.0)


def feed_forward(config, w, x):
    up_bias, down_bias = (w["up_bias"], w["down_bias"]) if config.mlp_bias else (0.0, 0.0)
    up = x @ w["up"] + up_bias
    hidden = silu(x @ w["gate"]) * up if config.activation == "swiglu" else gelu(up, config.activation == "gelu_tanh")
    return hidden @ w["down"] + down_bias


def condition_of(config, w, time, rows):
    time = np.zeros(rows) if config.conditioning == "constant" else time
    half = config.time_features // 2
    angle = time[:, None] * config.time_scale * 10000.0 ** (-np.arange(half) / half)
    features = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    return silu(silu(features @ w["first"] + w["first_bias"]) @ w["second"] + w["second_bias"])


def parts_of(w, condition):
    return np.einsum("bc,csd->sbd", condition, w["kernel"])[:, :, None] + w["bias"][:, None, None]


def logits(config, params, tokens, *, time, positions, segments, order, tree_map):
    """[B, L, head_size] float64."""
    p = tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["embedding"][tokens]
    if config.learned_positions:
        x = x + p["positions"][positions]
    seen = visible(config, segments, order)
    condition = None if config.conditioning == "none" else condition_of(config, p["time"], time, len(tokens))
    for layer in range(config.layers):
        w = tree_map(lambda leaf, layer=layer: leaf[layer], p["layers"])
        shift = scale = [0.0, 0.0]
        gate = [1.0, 1.0]
        if condition is not None:
            parts = parts_of(w["modulation"], condition)
            shift, scale, gate = parts[[0, 3]], parts[[1, 4]], parts[[2, 5]]
        y = norm(config, w["attention_norm"], x) * (1 + scale[0]) + shift[0]
        x = x + gate[0] * attention(config, w["attention"], y, positions, seen)
        y = norm(config, w["mlp_norm"], x) * (1 + scale[1]) + shift[1]
        x = x + gate[1] * feed_forward(config, w["mlp"], y)
    x = norm(config, p["final_norm"], x)
    if condition is not None:
        shift, scale = parts_of(p["final_modulation"], condition)
        x = x * (1 + scale) + shift
    head = p["embedding"][: config.head_size].T if config.tied else p["head"]
    return x @ head + (p["head_bias"] if config.head_bias else 0.0)
