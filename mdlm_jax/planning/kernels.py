"""Work hidden in Pallas kernels, by formula and by how often each kernel runs."""

from collections.abc import Mapping

from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig

_SPLASH = {"fwd": 2, "dkv": 4, "dq": 3}  # matrix products with scores, or of scores, in each splash kernel
_GROUPED = ("gmm", "tgmm")  # megablox: one product with one matrix per expert


def computed(network: TransformerConfig, runs: Mapping[str, int], tokens: int, seen: float) -> float:
    """FLOPs of all devices together.

    Args:
      runs: name of a kernel -> how often it runs (`hlo.kernels`).
      tokens: positions of all devices.
      seen: keys a query sees on average.
    """
    score_product = flops.attention_flops(network, tokens, seen) / network.layers / 2
    found = score_product * sum(
        count * next((n for key, n in _SPLASH.items() if f"_{key}_" in name), 0)
        for name, count in runs.items() if "splash" in name
    )
    if network.moe is not None:
        visits = tokens * network.moe.per_token
        found += sum(runs.get(name, 0) for name in _GROUPED) * 2 * visits * network.d_model * network.moe.d_ff
    return found


def in_formula(network: TransformerConfig, runs: Mapping[str, int], tokens: int, seen: float) -> float:
    """What `flops.forward_flops` counts for the work of these kernels, one forward pass."""
    found = 0.0
    if any("splash" in name for name in runs):
        found += flops.attention_flops(network, tokens, seen)
    if network.moe is not None and any(name in runs for name in _GROUPED):
        visits = tokens * network.moe.per_token
        found += (network.layers - network.dense_layers) * 6 * visits * network.d_model * network.moe.d_ff
    return found
