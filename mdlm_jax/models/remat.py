"""What the backward pass recomputes, by name."""

import flax.linen as nn
import jax


def rematerialised(layer: type[nn.Module], name: str) -> type[nn.Module]:
    """The layer under a policy of `TransformerConfig.remat`."""
    if name == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "matmuls": policies.dots_with_no_batch_dims_saveable,
        "context": policies.save_only_these_names("context"),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[name]
    return nn.remat(layer, prevent_cse=False, policy=policy)
