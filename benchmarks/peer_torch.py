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

    from benchmarks.peer_torch_network import Network

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = Network(options)
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
