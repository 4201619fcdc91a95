"""The network of `benchmarks.peer_torch`: bidirectional Llama-like layers on `scaled_dot_product_attention`."""

import torch
import torch.nn.functional as F
from torch import nn


def _product(x, y):
    """x y^T through oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)
        return _product(grad, weight.t()), _product(flat_grad.t(), flat_x.t())


class _OneDNN(nn.Linear):
    def forward(self, x):
        return _Product.apply(x, self.weight)


def _linear(options, inputs: int, outputs: int) -> nn.Linear:
    return (_OneDNN if options.onednn else nn.Linear)(inputs, outputs, bias=False)


def _rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class _Layer(nn.Module):
    def __init__(self, options):
        super().__init__()
        d, wide = options.d_model, options.d_ff
        self.heads, self.size = options.heads, d // options.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, 1e-5), nn.RMSNorm(d, 1e-5)
        self.query, self.key, self.value, self.out = (_linear(options, d, d) for _ in range(4))
        self.gate, self.up = _linear(options, d, wide), _linear(options, d, wide)
        self.down = _linear(options, wide, d)

    def forward(self, x, cos, sin):
        y = self.attention_norm(x)
        split = (x.shape[0], x.shape[1], self.heads, self.size)
        q, k, v = (f(y).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Network(nn.Module):
    """Tokens [B, L] to logits [B, L, vocab]; sizes as of `peer_worker.parser`."""

    def __init__(self, options):
        super().__init__()
        d, size = options.d_model, options.d_model // options.heads
        self.embedding = nn.Embedding(options.vocab + 1, d)
        self.layers = nn.ModuleList(_Layer(options) for _ in range(options.layers))
        self.norm, self.head = nn.RMSNorm(d, 1e-5), _linear(options, d, options.vocab)
        angle = torch.arange(options.length)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))
