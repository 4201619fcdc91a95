"""The shape of a Transformer, free of jax: every architecture switch, validated.

One family covers the backbones of the field: Llama-like denoisers (LLaDA, Dream, SMDM), mixtures of experts (LLaDA-MoE,
LLaDA2), DiT (MDLM) and the autoregressive bases people adapt (Llama, Qwen, GPT-2). `models.presets` names the published
sizes, `models.flops` counts the work.
"""

import dataclasses
from typing import Any

ATTENTIONS = ("bidirectional", "causal", "block_causal", "two_stream", "permutation")
NORMS = ("rms", "layer")
ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh")
CONDITIONINGS = ("none", "time", "constant")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ROUTERS = ("softmax", "sigmoid")
BACKENDS = ("xla", "cudnn", "splash")
REMATS = ("none", "full", "matmuls", "context", "offload")
DTYPES = ("float32", "bfloat16", "float64")


def _require(condition: bool, field: str, value: Any, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{field}={value!r}: {remedy}")


def _choose(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, field, value, f"choose one of {', '.join(allowed)}")


def x64_enabled() -> bool:
    """Whether jax computes in float64. Only who asks for that pays for the import."""
    import jax

    config: Any = jax.config  # whose attributes jax makes as it is imported
    return config.jax_enable_x64


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864).

    Attributes:
      theta: base of the angles; 0 turns rotary off (learned positions take its place, see ``learned_positions``).
      fraction: share of each head that rotates, from its start.
      interleaved: pairs are (0,1), (2,3), ... instead of (0, H/2), (1, H/2 + 1), ...
      scaling: none | linear | llama3 | yarn, stretching the positions by ``factor``.
      low_frequency, high_frequency: llama3's band; yarn's beta_slow and beta_fast.
      original_length: the length the frequencies were trained for (llama3, yarn).
      attention_factor: yarn's scale of cos and sin; 0: 0.1 ln(factor) + 1.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: str = "none"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 0
    attention_factor: float = 0.0

    def __post_init__(self):
        _require(self.theta >= 0, "rope.theta", self.theta, "must be positive, or 0 for no rotary embedding")
        _require(0.0 < self.fraction <= 1.0, "rope.fraction", self.fraction, "must lie in (0, 1]")
        _choose("rope.scaling", self.scaling, ROPE_SCALINGS)
        _require(self.factor >= 1.0, "rope.factor", self.factor, "must be at least 1")
        if self.scaling in ("llama3", "yarn"):
            _require(self.original_length > 0, "rope.original_length", self.original_length,
                     f"must be positive with rope.scaling={self.scaling}")
            _require(0 < self.low_frequency < self.high_frequency, "rope.low_frequency", self.low_frequency,
                     f"must be positive and below rope.high_frequency={self.high_frequency}")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward layer.

    Attributes:
      experts: X, how many.
      per_token: k, how many each token visits.
      d_ff: width of one expert.
      shared_d_ff: width of the shared expert that every token visits; 0: none.
      router: scores are a softmax over all experts (LLaDA-MoE) or a sigmoid each (LLaDA2, DeepSeek-V3).
      selection_bias: a learned bias is added to the scores for choosing, not for weighing.
      bias_in_weight: the bias enters the weights too (LLaDA-MoE's optional form).
      groups, top_groups: experts are chosen among those of the ``top_groups`` groups with the largest sum of their two
        best scores; 1 and 1: no groups.
      normalize: the chosen weights are divided by their sum.
      scale: factor of the weights.
      block: tokens of a block of this many positions choose from one pool (LLaDA2.2); 0: every token for itself.
      block_pool: experts in that pool, those with the largest scores that any of the block gives them (LLaDA2.2: 48 of
        256).
      balance_loss, z_loss: coefficients of the load-balance loss (Switch, arXiv 2101.03961) and of the router's
        squared log-normaliser (ST-MoE, 2202.08906).
      leading_dense: layers at the bottom that keep a dense feed-forward layer of ``TransformerConfig.d_ff``.
    """

    experts: int
    per_token: int
    d_ff: int
    shared_d_ff: int = 0
    router: str = "softmax"
    selection_bias: bool = False
    bias_in_weight: bool = False
    groups: int = 1
    top_groups: int = 1
    normalize: bool = False
    scale: float = 1.0
    block: int = 0
    block_pool: int = 0
    balance_loss: float = 0.0
    z_loss: float = 0.0
    leading_dense: int = 0

    def __post_init__(self):
        for name in ("experts", "per_token", "d_ff", "groups", "top_groups"):
            _require(getattr(self, name) > 0, f"moe.{name}", getattr(self, name), "must be positive")
        for name in ("shared_d_ff", "block", "block_pool", "balance_loss", "z_loss", "leading_dense"):
            _require(getattr(self, name) >= 0, f"moe.{name}", getattr(self, name), "must not be negative")
        _choose("moe.router", self.router, ROUTERS)
        _require(self.selection_bias or not self.bias_in_weight, "moe.bias_in_weight", self.bias_in_weight,
                 "there is no bias to enter the weights; set moe.selection_bias too")
        _require(self.experts % self.groups == 0, "moe.groups", self.groups, f"must divide moe.experts={self.experts}")
        _require(self.top_groups <= self.groups, "moe.top_groups", self.top_groups,
                 f"must be at most moe.groups={self.groups}")
        if self.groups > 1:
            _require(self.experts // self.groups >= 2, "moe.groups", self.groups,
                     "leaves fewer than 2 experts a group; lower it")
        available = self.experts // self.groups * self.top_groups
        _require(self.per_token <= available, "moe.per_token", self.per_token,
                 f"must be at most {available}, the experts that can be chosen")
        _require((self.block > 0) == (self.block_pool > 0), "moe.block_pool", self.block_pool,
                 "set both moe.block and moe.block_pool, or neither")
        if self.block:
            _require(self.groups == 1, "moe.groups", self.groups,
                     f"a pool of moe.block={self.block} is not cut into groups; leave it out")
            _require(self.per_token <= self.block_pool <= self.experts, "moe.block_pool", self.block_pool,
                     f"must lie in [{self.per_token}, {self.experts}]")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes the network.

    Attributes:
      vocab_size: rows of the embedding table.
      head_size: columns of the head; may differ from vocab_size (SMDM's mask has a row and no column).
      layers, d_model, heads, d_ff: the usual; ``d_ff`` is the width of dense feed-forward layers.
      kv_heads: key/value heads, a divisor of ``heads``.
      head_dim: size of a head; 0: d_model / heads.
      attention: the contract, see `models.attention.visibility`; ``block_length`` is that of block_causal and
        two_stream (1 otherwise).
      norm, norm_eps, norm_bias: RMSNorm or LayerNorm before each branch and at the end; DiT's LayerNorm has no bias.
      activation: swiglu (three matrices) or a GELU (two).
      qkv_bias, out_bias, mlp_bias, head_bias: which projections have one.
      qk_norm: an RMSNorm over each head of query and key, before the rotation.
      rope: rotary embedding; ``learned_positions``: rows of a learned table of positions instead (GPT-2), 0: none.
      tied: head = embedding table transposed.
      logit_shift: row i of the network's output scores token i+1 (Dream); `api.apply` aligns it.
      conditioning: AdaLN on the noise level: none; time: `api.apply` takes a time; constant: the weights are there and
        see zero (MDLM's published models).
      condition_dim, time_features, time_scale: width of the condition, number of sinusoids, factor of the time.
      classes: AdaLN also sees the class of the row, one of so many or none; 0: it does not.
      latent: waves of a latent in [0, 1] that the network reads (`models.latent`); 0: none.
      moe: a mixture of experts, or None.
      dtype: of activations and matmuls. Parameters have the dtype they are given in, float32 from `api.init`.
      remat: what the backward pass recomputes: none; full: all but each layer's input; matmuls: keeps the results of
        projections and what ``context`` keeps; context: keeps what attention's backward pass needs (xla: its weights,
        splash: its output; cudnn keeps its own and runs again); offload: full, inputs kept in host memory.
      backend: of the attention: xla | cudnn | splash.
    """

    vocab_size: int
    head_size: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    head_dim: int = 0
    attention: str = "bidirectional"
    block_length: int = 1
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    activation: str = "swiglu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    rope: RopeConfig = RopeConfig()  # noqa: RUF009 (frozen)
    learned_positions: int = 0
    tied: bool = False
    logit_shift: bool = False
    dropout: float = 0.0
    conditioning: str = "none"
    condition_dim: int = 0
    time_features: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    latent: int = 0
    moe: MoEConfig | None = None
    dtype: str = "float32"
    remat: str = "none"
    backend: str = "xla"

    def __post_init__(self):
        for name in ("vocab_size", "head_size", "layers", "d_model", "heads", "kv_heads", "d_ff", "block_length"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("head_dim", "learned_positions", "condition_dim", "time_features", "classes",
                     "latent"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        _require(self.head_dim > 0 or self.d_model % self.heads == 0, "d_model", self.d_model,
                 f"must be a multiple of heads={self.heads}; or set head_dim")
        self._fill("head_dim", self.d_model // self.heads)
        if self.conditioning != "none":
            self._fill("condition_dim", min(128, self.d_model))
            self._fill("time_features", self.condition_dim)
        _require(self.latent % 2 == 0, "latent", self.latent, "must be even: cosines and sines of the position")
        _require(self.conditioning != "none" or not self.classes, "classes", self.classes,
                 "AdaLN tells the network its class; set conditioning to time or constant")
        for name, allowed in (("attention", ATTENTIONS), ("norm", NORMS), ("activation", ACTIVATIONS),
                              ("conditioning", CONDITIONINGS), ("dtype", DTYPES), ("remat", REMATS),
                              ("backend", BACKENDS)):
            _choose(name, getattr(self, name), allowed)
        _require(self.dtype != "float64" or x64_enabled(), "dtype", self.dtype,
                 "jax would silently compute in float32; set jax_enable_x64 first, or choose float32")
        _require(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"must divide heads={self.heads}")
        _require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "must lie in [0, 1)")
        _require(self.time_features % 2 == 0, "time_features", self.time_features, "must be even: sines and cosines")
        _require(self.head_size <= self.vocab_size or not self.tied, "tied", self.tied,
                 f"needs head_size={self.head_size} to be at most vocab_size={self.vocab_size}")
        _require(self.norm == "layer" or not self.norm_bias, "norm_bias", self.norm_bias,
                 "RMSNorm has no bias; leave it out, or set norm='layer'")
        blocks = self.attention in ("block_causal", "two_stream")
        _require(blocks or self.block_length == 1, "block_length", self.block_length,
                 f"has no meaning with attention={self.attention}; leave it out")
        if self.rope.theta > 0:
            _require(self.rotary_dim % 2 == 0 and self.rotary_dim > 0, "rope.fraction", self.rope.fraction,
                     f"rotates {self.rotary_dim} of head_dim={self.head_dim}; it must be an even number")
        if self.moe is not None:
            _require(self.moe.leading_dense < self.layers, "moe.leading_dense", self.moe.leading_dense,
                     f"must be below layers={self.layers}")
            _require(self.activation == "swiglu" and not self.mlp_bias, "activation", self.activation,
                     "with moe it must be swiglu, without mlp_bias")

    def _fill(self, name: str, default: int) -> None:
        if getattr(self, name) == 0:
            object.__setattr__(self, name, default)

    @property
    def rotary_dim(self) -> int:
        """Leading components of a head that rotate."""
        return int(self.head_dim * self.rope.fraction)

    @property
    def time_conditioning(self) -> bool:
        """Whether the network takes a time."""
        return self.conditioning == "time"

    @property
    def dense_layers(self) -> int:
        """Layers with a dense feed-forward branch; they come first."""
        return self.layers if self.moe is None else self.moe.leading_dense


def layers_beside(network: TransformerConfig, layers: int = 1) -> TransformerConfig:
    """Dense layers of the network's dimensions that see everything and are told neither time nor class nor latent: what
    small networks beside it are made of (`models.beside`)."""
    return dataclasses.replace(network, layers=layers, attention="bidirectional", block_length=1, moe=None, dropout=0.0,
                               conditioning="none", condition_dim=0, time_features=0, classes=0, latent=0,
                               logit_shift=False)
