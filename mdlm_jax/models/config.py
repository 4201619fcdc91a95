"""The Transformer's shape and its FLOPs, free of jax."""

import dataclasses

from mdlm_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes the network.

    Attributes:
      vocab_size: rows of the embedding table.
      head_size: columns of the head; may differ from vocab_size.
    """

    vocab_size: int
    head_size: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    dropout: float = 0.0
    time_conditioning: bool = False
    tied: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def condition_dim(self) -> int:
        """Width of the time embedding where there is one."""
        return min(128, self.d_model)

    def matmul_parameters(self) -> int:
        """Weights that multiply every token: attention and feed-forward of all layers, without embedding and head."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.d_model * self.d_ff)

    def forward_flops(self, tokens: int, length: int, head_tokens: int) -> int:
        """Matmul FLOPs of one forward pass (a multiply-add counts two).

        Args:
          tokens: positions that pass through the layers.
          length: positions each of them attends to.
          head_tokens: positions that pass through the head.
        """
        attention = self.layers * 2 * 2 * length * self.heads * self.head_dim
        head = 2 * self.d_model * self.head_size
        condition = self.layers * 2 * 6 * self.condition_dim * self.d_model if self.time_conditioning else 0
        return tokens * (2 * self.matmul_parameters() + attention) + (tokens // length) * condition + head_tokens * head

    def train_flops(self, tokens: int, length: int, head_tokens: int) -> int:
        """Forward plus backward, the backward pass at twice the forward; recomputation is not counted (model FLOPs)."""
        return 3 * self.forward_flops(tokens, length, head_tokens)


def from_run(model: ModelConfig, vocab_size: int) -> TransformerConfig:
    """The network of a run: ``ModelConfig`` with its defaults filled in and the tokenizer's vocabulary."""
    return TransformerConfig(
        vocab_size=vocab_size,
        head_size=vocab_size,
        layers=model.layers,
        d_model=model.d_model,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        d_ff=model.d_ff or -(-8 * model.d_model // (3 * 64)) * 64,
        dropout=model.dropout,
        time_conditioning=model.time_conditioning,
        tied=model.tied,
        rope_theta=model.rope_theta,
        dtype=model.dtype,
        remat=model.remat,
    )
