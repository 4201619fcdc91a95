"""What the backward pass recomputes, by name.

Products and attention have gradients of their own (`jax.custom_vjp`), which hide them from jax's policies by kind of
operation, so policies here go by `checkpoint_name`: ``product`` is what a projection gives, ``context`` what the
backward pass of attention needs of the forward pass (the result, and the weights or their normaliser).
"""

import flax.linen as nn
import jax


def rematerialised(layer: type[nn.Module], name: str) -> type[nn.Module]:
    """The layer under a policy of `TransformerConfig.remat`."""
    if name == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "matmuls": policies.save_only_these_names("product", "context"),
        "context": policies.save_only_these_names("context"),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[name]
    return nn.remat(layer, prevent_cse=False, policy=policy)
