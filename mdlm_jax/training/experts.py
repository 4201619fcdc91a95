"""Expert layers in training: the selection biases, which no gradient moves."""

from mdlm_jax.models.moe.routing import RouterStats, update_bias


def balance(trainable: dict, stats: RouterStats, rate: float) -> dict:
    """``trainable`` with every router's selection bias moved by ``rate`` against its load (arXiv 2408.15664).

    The optimiser leaves these biases alone: they get no gradient, and weight decay passes over them.
    """
    network = trainable["network"]
    layers, moe = network["layers"], network["layers"]["moe"]
    moe = moe | {"router_bias": update_bias(moe["router_bias"], stats, rate)}
    return trainable | {"network": network | {"layers": layers | {"moe": moe}}}
