"""Attention by cuDNN's flash kernel, through `jax.nn.dot_product_attention`: half precision on NVIDIA GPUs.

Full and causal attention need no mask. Every other contract, and segments, go in as a bias of 0 and a large negative
number: [B or 1, 1, Lq, Lk] in the dtype of the query, for all layers and heads one, which is read and not computed.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.models.attention.visibility import Visibility

_LARGEST_HEAD = 256  # of Hopper and later; cuDNN itself refuses what its GPU cannot do


def attend(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    """See `dispatch.attend`."""
    _check(query, key, visibility)
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **how(query, key, visibility))


def how(query: jax.Array, key: jax.Array, visibility: Visibility) -> dict:
    """The arguments that say who sees whom, the cheapest form that is exact."""
    if visibility.everything:
        return {}
    square = query.shape[1] == key.shape[1]
    if visibility.contract == "causal" and visibility.indexed and visibility.key.segment is None and square:
        return {"is_causal": True}
    return {"mask": visibility.mask(query.shape[0], query.shape[1], key.shape[1])}


def _check(query: jax.Array, key: jax.Array, visibility: Visibility) -> None:
    def refuse(what: str, remedy: str):
        raise ValueError(f"backend='cudnn': {what}; {remedy}")

    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform not in ("gpu", "cuda"):
        refuse(f"runs on NVIDIA GPUs, not on {platform}", "set backend='xla', or splash on TPU")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        refuse(f"takes bfloat16 or float16, not {query.dtype}", "set dtype='bfloat16', or backend='xla'")
    if query.shape[3] % 8 or query.shape[3] > _LARGEST_HEAD:
        refuse(f"heads of size {query.shape[3]}", f"take a multiple of 8 up to {_LARGEST_HEAD}, or backend='xla'")
    masked = "mask" in how(query, key, visibility)
    if masked and (query.shape[1] % 2 or key.shape[1] % 2):
        refuse(f"a masked {query.shape[1]} x {key.shape[1]}", "take even lengths, or backend='xla'")
