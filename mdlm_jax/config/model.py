"""The ``model`` section of a run's configuration: the switches of `models.config.TransformerConfig`, flat.

Fields starting with ``rope_`` and ``moe_`` are those of `RopeConfig` and `MoEConfig`. Free of jax. A published network
comes in by ``config.model.update(presets.fields("llada-8b"))`` (`models.presets`).
"""

import dataclasses

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import MoEConfig, RopeConfig, TransformerConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The denoiser. Embedding and head have as many ids as the tokenizer unless told otherwise."""

    layers: int = 4  # Transformer blocks
    d_model: int = 256  # width of the residual stream
    heads: int = 4  # query heads
    kv_heads: int = 0  # key/value heads, a divisor of heads; 0: as many as heads
    head_dim: int = 0  # size of a head; 0: d_model / heads
    d_ff: int = 0  # width of the feed-forward layer; 0: 8/3 d_model (4 d_model with a GELU) up to a multiple of 64
    vocab_size: int = 0  # rows of the embedding table; 0: the tokenizer's ids
    head_size: int = 0  # columns of the head; 0: vocab_size
    attention: str = "bidirectional"  # bidirectional | causal | block_causal | two_stream | permutation
    block_length: int = 1  # of block_causal and two_stream
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-5  # added to the variance
    norm_bias: bool = False  # LayerNorm with a bias
    activation: str = "swiglu"  # swiglu | gelu | gelu_tanh
    qkv_bias: bool = False  # bias of query, key and value
    out_bias: bool = False  # bias of the attention's output
    mlp_bias: bool = False  # biases of the feed-forward layer
    head_bias: bool = False  # bias of the logits
    qk_norm: bool = False  # RMSNorm of each query and key head
    learned_positions: int = 0  # rows of a learned position table, with rope_theta=0 (GPT-2); 0: none
    rope_theta: float = 10000.0  # base of the rotary angles; 0: no rotary embedding
    rope_fraction: float = 1.0  # share of each head that rotates
    rope_interleaved: bool = False  # neighbouring components form the pairs, not the two halves
    rope_scaling: str = "none"  # none | linear | llama3 | yarn
    rope_factor: float = 1.0  # by which it stretches
    rope_low_frequency: float = 1.0  # llama3 and yarn: end of the stretched band
    rope_high_frequency: float = 4.0  # llama3 and yarn: start of the untouched band
    rope_original_length: int = 0  # llama3 and yarn: length the frequencies were trained for
    rope_attention_factor: float = 0.0  # yarn: scale of cos and sin; 0: 0.1 ln(factor) + 1
    tied: bool = False  # head = embedding transposed
    logit_shift: bool = False  # the network's row i scores token i+1 (Dream)
    dropout: float = 0.0  # on the residual branches, in training only
    conditioning: str = "none"  # AdaLN on the noise level: none | time | constant (weights fed zero, MDLM)
    condition_dim: int = 0  # width of the condition; 0: at most 128
    time_features: int = 0  # sinusoids of the noise level; 0: condition_dim
    time_scale: float = 1000.0  # factor of the noise level
    classes: int = 0  # classes that AdaLN sees beside the noise level (data.source=digits, codes:PATH); 0: none
    latent: int = 0  # waves of the latent that a mixture student reads (train.objective=di4c); 0: none
    moe_experts: int = 0  # experts of a layer; 0: dense layers
    moe_per_token: int = 0  # experts a token visits
    moe_d_ff: int = 0  # width of an expert
    moe_shared_d_ff: int = 0  # width of the expert every token visits; 0: none
    moe_router: str = "softmax"  # softmax | sigmoid
    moe_selection_bias: bool = False  # a bias that enters the choice of experts
    moe_bias_in_weight: bool = False  # and their weights
    moe_groups: int = 1  # groups of experts
    moe_top_groups: int = 1  # groups a token may choose from
    moe_normalize: bool = False  # chosen weights sum to one
    moe_scale: float = 1.0  # factor of the weights
    moe_block: int = 0  # positions that share one pool of experts (LLaDA2.2); 0: every token for itself
    moe_block_pool: int = 0  # experts in that pool
    moe_balance_loss: float = 0.0  # coefficient of the load-balance loss
    moe_z_loss: float = 0.0  # coefficient of the router's z-loss
    moe_leading_dense: int = 0  # layers at the bottom without experts
    dtype: str = "float32"  # activations and matmuls: float32 | bfloat16; parameters are always float32
    remat: str = "none"  # recompute in the backward pass: none | full | matmuls | context | offload
    backend: str = "xla"  # attention: xla | cudnn (GPU) | splash (TPU)

    def __post_init__(self):
        if self.heads > 0 and not self.head_dim and self.d_model % self.heads:
            raise ConfigError(f"model.heads={self.heads!r}: must divide model.d_model={self.d_model}; or set "
                              "model.head_dim")
        if self.dtype == "float64":
            raise ConfigError("model.dtype='float64': is for comparisons in Python; choose float32 or bfloat16")
        self.transformer(self.vocab_size or max(self.head_size, 2))

    def transformer(self, vocab_size: int) -> TransformerConfig:
        """The network over a tokenizer of ``vocab_size`` ids.

        Raises:
          ConfigError: a field, with its value, that cannot work; a table with fewer rows than the tokenizer has ids.
        """
        if self.vocab_size and self.vocab_size < vocab_size:
            raise ConfigError(f"model.vocab_size={self.vocab_size}: the tokenizer has {vocab_size} ids; raise it, or "
                              "leave it out")
        shape = {name: value for name, value in dataclasses.asdict(self).items() if name in _SHAPE}
        rows = self.vocab_size or vocab_size
        shape |= {"vocab_size": rows, "head_size": self.head_size or rows, "kv_heads": self.kv_heads or self.heads,
                  "d_ff": self.d_ff or self._usual_d_ff()}
        try:
            rope = RopeConfig(**_part(self, "rope_"))
            moe = MoEConfig(**_part(self, "moe_")) if self.moe_experts else None
            _refuse_orphans(self)
            return TransformerConfig(**shape, rope=rope, moe=moe)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError("model." + str(error).replace("rope.", "rope_").replace("moe.", "moe_")) from None

    def _usual_d_ff(self) -> int:
        exact = 8 * self.d_model / 3 if self.activation == "swiglu" else 4 * self.d_model
        return -(-int(exact + 0.999) // 64) * 64


_SHAPE = {field.name for field in dataclasses.fields(TransformerConfig)} - {"rope", "moe"}


def _part(config: ModelConfig, prefix: str) -> dict:
    values = dataclasses.asdict(config)
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _refuse_orphans(config: ModelConfig) -> None:
    """Fields that only experts read, set without experts."""
    if config.moe_experts:
        return
    for field in dataclasses.fields(ModelConfig):
        if field.name.startswith("moe_") and getattr(config, field.name) != field.default:
            value = getattr(config, field.name)
            raise ConfigError(f"model.{field.name}={value!r}: has no meaning without model.moe_experts; leave it out")


def from_transformer(config: TransformerConfig) -> dict:
    """The fields of a ``ModelConfig`` that make ``config``, as a dict for ``config.model.update``."""
    fields = {name: getattr(config, name) for name in _SHAPE}
    fields |= {f"rope_{name}": value for name, value in dataclasses.asdict(config.rope).items()}
    if config.moe is not None:
        fields |= {f"moe_{name}": value for name, value in dataclasses.asdict(config.moe).items()}
    return fields
