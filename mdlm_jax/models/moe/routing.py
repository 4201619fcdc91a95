"""Which experts each token visits and with what weight; the sums that balance them.

Two routers, both on float32 logits [..., X]:

    softmax (LLaDA-MoE, arXiv 2509.24389)         sigmoid (LLaDA2, arXiv 2512.15745; DeepSeek-V3, 2412.19437)
    s = softmax(logits)                           s = sigmoid(logits)
    chosen: the k largest s (+ bias)              chosen: the k largest s + bias among the experts admitted
    weight = s (+ bias if bias_in_weight)         weight = scale * s / (sum of the chosen s + 1e-20)

Every switch of `MoEConfig` works with either score. Admitted are the experts of the ``top_groups`` groups whose two
best biased scores have the largest sum, or, with ``block``, the pool of the token's block (LLaDA2.2). Ties go to the
lowest index.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.models.config import MoEConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """One visit a column, best first.

    Attributes:
      index: [..., k] int32 experts.
      weight: [..., k] float32.
      scores: [..., X] float32, softmax or sigmoid of the logits.
    """

    index: jax.Array
    weight: jax.Array
    scores: jax.Array


def router_logits(x: jax.Array, router: jax.Array) -> jax.Array:
    """x [..., D], router [D, X] -> [..., X], in float32 at the highest precision: choices hang on the last bits."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("...d,dx->...x", x.astype(wide), router.astype(wide), precision=jax.lax.Precision.HIGHEST)


def route(
    moe: MoEConfig,
    logits: jax.Array,
    bias: jax.Array | None = None,
    *,
    order: jax.Array | None = None,
    segment: jax.Array | None = None,
) -> Routing:
    """Chooses experts. No gradient passes through the choice, nor to a bias that is not in the weights.

    Args:
      logits: [..., X]; [B, L, X] with ``moe.block``.
      bias: [X], required by, and only by, ``moe.selection_bias``.
      order, segment: [B, L], with ``moe.block`` only: see `block_pool`.
    Raises:
      ValueError: bias missing or superfluous; block routing together with groups, or without its axes.
    """
    _check(moe, logits, bias)
    scores = jax.nn.softmax(logits) if moe.router == "softmax" else jax.nn.sigmoid(logits)
    biased = scores if bias is None else scores + bias.astype(scores.dtype)
    fixed = jax.lax.stop_gradient(biased)
    if moe.block:
        admitted = block_pool(moe, fixed, order, segment)
    else:
        admitted = top_group_members(moe, fixed)
    _, index = jax.lax.top_k(jnp.where(admitted, fixed, -jnp.inf), moe.per_token)
    weight = _pick(biased if moe.bias_in_weight else scores, index)
    if moe.normalize and moe.per_token > 1:  # alone, a normalised weight would be 1 and the router would not learn
        weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
    return Routing(index, weight * moe.scale, scores)


def _check(moe: MoEConfig, logits: jax.Array, bias: jax.Array | None) -> None:
    if (bias is not None) != moe.selection_bias:
        raise ValueError(f"bias: moe.selection_bias={moe.selection_bias} and {'no' if bias is None else 'a'} bias "
                         "came; give both or neither")
    if moe.block and moe.groups > 1:
        raise ValueError(f"moe.groups={moe.groups}: a block's pool is not cut into groups; set 1 with moe.block")
    if moe.block and logits.ndim != 3:
        raise ValueError(f"logits of shape {logits.shape}: moe.block needs [B, L, X]")


def top_group_members(moe: MoEConfig, biased: jax.Array) -> jax.Array:
    """[..., X] bool: the experts of the ``top_groups`` groups with the largest sum of their two best scores."""
    if moe.groups == moe.top_groups:
        return jnp.ones(biased.shape, bool)
    grouped = biased.reshape(*biased.shape[:-1], moe.groups, -1)
    best, _ = jax.lax.top_k(grouped, 2)
    _, groups = jax.lax.top_k(best.sum(-1), moe.top_groups)
    return jnp.repeat(_members(groups, moe.groups), moe.experts // moe.groups, axis=-1)


def block_pool(moe: MoEConfig, biased: jax.Array, order: jax.Array | None, segment: jax.Array | None) -> jax.Array:
    """[B, L, X] bool: the ``block_pool`` experts admitted by each token's block (LLaDA2.2).

    Expert x is admitted to a block by the largest biased score any of its tokens gives it. A block is a run of
    consecutive ``order`` (the index in the row; None: 0, 1, ...) of one segment with one ``order // moe.block``: blocks
    are aligned to index 0 and a document never shares one. Padding (segment 0) does not vote.
    """
    rows, length, experts = biased.shape
    run = _runs(moe.block, order, segment, (rows, length))
    voting = biased if segment is None else jnp.where((segment != 0)[..., None], biased, -jnp.inf)
    best = jax.vmap(lambda scores, number: jax.ops.segment_max(scores, number, length))(voting, run)
    admission = jnp.take_along_axis(best, run[..., None], axis=1)
    return _members(jax.lax.top_k(admission, moe.block_pool)[1], experts)


def _runs(block: int, order: jax.Array | None, segment: jax.Array | None, shape: tuple[int, int]) -> jax.Array:
    """[B, L] int32: the number of each token's block in its row, from 0."""
    order = jnp.broadcast_to(jnp.arange(shape[1]) if order is None else order, shape)
    begins = (order[:, 1:] != order[:, :-1] + 1) | (order[:, 1:] % block == 0)
    if segment is not None:
        begins = begins | (segment[:, 1:] != segment[:, :-1])
    return jnp.pad(jnp.cumsum(begins, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values [..., X], index [..., k] -> [..., k]. A masked sum: the gradient of a gather would be a scatter."""
    return jnp.where(index[..., None] == jnp.arange(values.shape[-1]), values[..., None, :], 0).sum(-1)


def _members(index: jax.Array, size: int) -> jax.Array:
    """[..., n] indices -> [..., size] bool."""
    return (index[..., None] == jnp.arange(size)).any(-2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStats:
    """Sums over real tokens, of one layer or stacked [layers, ...]; they add up over microbatches and hosts.

    Attributes:
      chosen: [X] float32, visits to each expert.
      probability: [X] float32, sum of p, the scores divided by their sum over the experts.
      squared_log_normaliser: [] float32, sum of logsumexp(logits)^2.
      tokens: [] float32.
    """

    chosen: jax.Array
    probability: jax.Array
    squared_log_normaliser: jax.Array
    tokens: jax.Array

    def __add__(self, other: "RouterStats") -> "RouterStats":
        return jax.tree.map(jnp.add, self, other)


def router_stats(logits: jax.Array, routing: Routing, real: jax.Array | None = None) -> RouterStats:
    """Of logits [..., X]; ``real`` [...] bool says which tokens count, None: all."""
    real = jnp.ones(logits.shape[:-1], jnp.float32) if real is None else real.astype(jnp.float32)
    leading = tuple(range(real.ndim))
    visits = (routing.index[..., None] == jnp.arange(logits.shape[-1])).sum(-2)
    share = routing.scores / (routing.scores.sum(-1, keepdims=True) + 1e-20)
    squared = jax.nn.logsumexp(logits, axis=-1) ** 2
    return RouterStats(
        (visits * real[..., None]).sum(leading), (share * real[..., None]).sum(leading),
        (squared * real).sum(), real.sum(),
    )


def balance_loss(stats: RouterStats) -> jax.Array:
    """X * sum_x f_x p_x, [] or [layers]: f the share of visits, p the mean probability; 1 when both are even.

    Switch's loss (arXiv 2101.03961, eq. 4) with f over all k visits of a token. Mixtral, OLMoE and LLaDA-MoE do not
    divide f by k: their value, and so the weight of the same coefficient, is k times this one. Only p has a gradient.
    """
    visits = jnp.maximum(stats.chosen.sum(-1, keepdims=True), 1)
    tokens = jnp.maximum(stats.tokens[..., None], 1)
    return stats.chosen.shape[-1] * (stats.chosen / visits * (stats.probability / tokens)).sum(-1)


def z_loss(stats: RouterStats) -> jax.Array:
    """Mean of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5), [] or [layers]."""
    return stats.squared_log_normaliser / jnp.maximum(stats.tokens, 1)


def relative_load(stats: RouterStats) -> jax.Array:
    """Visits to each expert over those of an even spread, [X] or [layers, X]; a maximum of 1 is perfect balance."""
    return stats.chosen / jnp.maximum(stats.chosen.mean(-1, keepdims=True), 1e-20)


def update_bias(bias: jax.Array, stats: RouterStats, rate: float) -> jax.Array:
    """b + rate * sign(mean load - load): balance without a loss (arXiv 2408.15664). [X] or [layers, X]."""
    return bias + rate * jnp.sign(stats.chosen.mean(-1, keepdims=True) - stats.chosen)
