"""What a network costs: matmul parameters and FLOPs by formula (a multiply-add counts two)."""

from mdlm_jax.models.config import TransformerConfig, layers_beside


def matmul_parameters(config: TransformerConfig) -> int:
    """Weights that multiply every token in all layers; of an expert layer those it visits. No embedding, no head."""
    c = config
    attention = c.d_model * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    dense = (3 if c.activation == "swiglu" else 2) * c.d_model * c.d_ff
    total = c.layers * attention + c.dense_layers * dense
    if c.moe is not None:
        visited = 3 * c.d_model * (c.moe.per_token * c.moe.d_ff + c.moe.shared_d_ff) + c.d_model * c.moe.experts
        total += (c.layers - c.dense_layers) * visited
    return total


def attention_flops(config: TransformerConfig, tokens: int, seen: float) -> float:
    """Of the two products with the scores, forward, all layers; ``seen``: keys a query sees on average."""
    return config.layers * tokens * 4 * seen * config.heads * config.head_dim


def forward_flops(config: TransformerConfig, tokens: int, length: int, head_tokens: int) -> int:
    """Of one forward pass.

    Args:
      tokens: positions that pass through the layers.
      length: positions of a row, all of which a query is taken to see.
      head_tokens: positions that pass through the head.
    """
    c = config
    head = 2 * c.d_model * c.head_size * head_tokens
    condition = 0
    if c.conditioning != "none":
        condition = tokens // length * 2 * c.condition_dim * c.d_model * (6 * c.layers + 2)
    latent = 2 * c.d_model * (tokens // length * c.latent + tokens * (c.latent + c.d_model)) if c.latent else 0
    return int(tokens * 2 * matmul_parameters(c) + attention_flops(c, tokens, length) + head + condition + latent)


def lattice_seen(length: int, low: float, high: float) -> int:
    """Keys that a query sees on average, where a prompt of ``low`` to ``high`` of a row sees itself and each other
    token what comes before it: n + m (m + 1) / 2 L with n = L - m given."""
    given = int((low + high) / 2 * length)
    rest = length - given
    return given + -(-rest * (rest + 1) // (2 * length))


def train_flops(config: TransformerConfig, tokens: int, length: int, head_tokens: int) -> int:
    """Forward plus backward at twice the forward; recomputation is not counted (model FLOPs)."""
    return 3 * forward_flops(config, tokens, length, head_tokens)


def joint_train_flops(network: TransformerConfig, rows: int, length: int, passes: int, drawn: bool) -> int:
    """Of a joint layer (`models.joint`): two forwards of the network that stays, and ``passes`` of the layer and the
    head with their gradient; with the head once more a pass where tokens are ``drawn``."""
    tokens = rows * length
    layer = train_flops(layers_beside(network), tokens, length, tokens)
    heads = 2 * tokens * network.d_model * network.head_size * passes * drawn
    return 2 * forward_flops(network, tokens, length, tokens) + passes * layer + heads


def circuit_train_flops(network: TransformerConfig, rows: int, length: int, states: int) -> int:
    """Of CoDD's circuit (`models.circuit`): a forward of the network that stays, with its head; what states emit on the
    average, whose gradient is that of the emissions alone; and two passes over the row with their gradient."""
    tokens = rows * length
    emitted, passed = 4 * tokens * states * network.head_size, 2 * 3 * 2 * tokens * states**2
    return forward_flops(network, tokens, length, tokens) + emitted + passed


def quality_train_flops(network: TransformerConfig, rows: int, length: int, kind: str, layers: int) -> int:
    """Of a planner or PRISM's head (`models.quality`): a forward of the network that stays, with its head, for prism
    one more without, and the small network with its gradient."""
    tokens, forwards = rows * length, 2 if kind == "prism" else 1
    alone = forward_flops(network, tokens, length, 0)
    head = forward_flops(network, tokens, length, tokens) - alone
    mixed = 6 * tokens * forwards * network.d_model**2  # it reads tokens, and with prism the hidden states too
    return forwards * alone + head + train_flops(layers_beside(network, layers), tokens, length, 0) + mixed


def taught_train_flops(network: TransformerConfig, rows: int, length: int, *, forwards: int, heads: int,
                       copies: int = 1) -> int:
    """Of a network that trains on so many copies of every row, beside so many forwards without a gradient of it or of a
    teacher like it, and of heads."""
    tokens = rows * length
    alone = forward_flops(network, tokens, length, 0)
    head = forward_flops(network, tokens, length, tokens) - alone
    return train_flops(network, copies * tokens, length, copies * tokens) + forwards * alone + heads * head


def maria_train_flops(network: TransformerConfig, twin: TransformerConfig, rows: int, length: int,
                      head_tokens: int) -> int:
    """Of the head on a network and its twin (`models.fused`): a forward of each, neither with its own head, and the
    fused one at ``head_tokens`` positions with the gradient of its weights; nothing else takes one."""
    tokens, width = rows * length, network.d_model + twin.d_model
    seen = (length + 1) // 2  # keys that a query of the twin sees
    return (forward_flops(network, tokens, length, 0) + forward_flops(twin, tokens, seen, 0)
            + 4 * head_tokens * width * network.head_size)
