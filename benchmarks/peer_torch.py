"""A plain PyTorch implementation of the same network and step as a contender of `benchmarks.peers`.

Bidirectional Llama-like layers on `scaled_dot_product_attention`; AdamW (fused), clip by global norm, EMA. On CPU
PyTorch runs float32 products through MKL, which takes its AVX2 kernels on AMD; ``--onednn`` sends them to oneDNN, the
library XLA and PyTorch's own bfloat16 use.
"""

from benchmarks.peer_worker import parser, prepare, serve, token_rows


def main() -> None:
    p = parser()
    p.add_argument("--compile", action="store_true")
    p.add_argument("--onednn", action="store_true", help="float32 projections through oneDNN")
    p.add_argument("--bf16", action="store_true", help="autocast")
    options = p.parse_args()
    reply = prepare(options)
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    d, heads, length = options.d_model, options.heads, options.length
    size = d // heads

    def product(x, y):
        """x y^T through oneDNN."""
        return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return product(x, weight)

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)
            return product(grad, weight.t()), product(flat_grad.t(), flat_x.t())

    class OneDNN(nn.Linear):
        def forward(self, x):
            return Product.apply(x, self.weight)

    def linear(inputs, outputs):
        return (OneDNN if options.onednn else nn.Linear)(inputs, outputs, bias=False)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.RMSNorm(d, 1e-5), nn.RMSNorm(d, 1e-5)
            self.query, self.key, self.value, self.out = (linear(d, d) for _ in range(4))
            self.gate, self.up, self.down = linear(d, options.d_ff), linear(d, options.d_ff), linear(options.d_ff, d)

        def forward(self, x, cos, sin):
            y = self.attention_norm(x)
            split = (x.shape[0], x.shape[1], heads, size)
            q, k, v = (f(y).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            y = self.mlp_norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def rotate(x, cos, sin):
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(options.vocab + 1, d)
            self.layers = nn.ModuleList(Layer() for _ in range(options.layers))
            self.norm, self.head = nn.RMSNorm(d, 1e-5), linear(d, options.vocab)
            angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def forward(self, tokens):
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x, self.cos, self.sin)
            return self.head(self.norm(x))

    network = Network()
    parameters = list(network.parameters())
    averages = [w.detach().clone() for w in parameters] if options.ema else []
    optimizer = torch.optim.AdamW(parameters, 3e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    tokens = torch.tensor(token_rows(options))

    def objective(noisy, weight):
        logits = network(noisy)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / tokens.numel()

    predict = network
    if options.compile:
        objective, predict = torch.compile(objective), torch.compile(network)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=options.bf16)

    def forward() -> float:
        with torch.no_grad(), cast:
            return predict(tokens)[0, 0, 0].item()

    def step() -> float:
        u = torch.rand(options.rows // 2)
        t = torch.stack((u, 1 - u), 1).flatten()[:, None]
        masked = torch.rand(tokens.shape) < t
        noisy, weight = torch.where(masked, options.vocab, tokens), masked / t.clamp(1e-3)
        with cast:
            loss = objective(noisy, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1.0 - options.ema)
        return loss.item()

    about = {
        "parameters": sum(w.numel() for w in parameters),
        "versions": f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        "contains": f"masked NELBO at antithetic times, gradient, clip by global norm, AdamW (fused), "
                    f"{'EMA' if averages else 'no EMA'}; {'bf16 autocast' if options.bf16 else 'float32'}, "
                    f"{'oneDNN' if options.onednn else 'default'} products, "
                    f"{'torch.compile' if options.compile else 'eager'}",
    }
    serve(options, reply, about, {"forward": forward, "step": step})


if __name__ == "__main__":
    main()
