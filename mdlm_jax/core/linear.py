"""Matrix products over tokens, written so that every backend runs them at full speed."""

import jax
import jax.numpy as jnp


def outer(x: jax.Array, y: jax.Array, dtype=None) -> jax.Array:
    """sum over all leading axes of x^T y: [..., D], [..., F] -> [D, F], accumulated in float32 or wider.

    The result is as wide, or of ``dtype``; asked for here, the sums that devices hand each other are that narrow too.

    The weight gradient of every projection. XLA:CPU turns the contraction over two axes into a transposed copy and a
    slow product (2.7 times the time of a feed-forward layer's gradient), so there the leading axes are merged first;
    elsewhere they are left alone, since both may be split over devices.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dtype = wide if dtype is None else dtype

    def merged(x, y):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        return jnp.einsum("nd,nf->df", x, y, preferred_element_type=wide).astype(dtype)

    def as_it_is(x, y):
        axes = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, y, ((axes, axes), ((), ())), preferred_element_type=dtype)

    return jax.lax.platform_dependent(x, y, cpu=merged, default=as_it_is)


@jax.custom_vjp
def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight in the dtype of x: [..., D], [D, F] -> [..., F]."""
    return x @ weight.astype(x.dtype)


def _project_forward(x, weight):
    return project(x, weight), (x, weight)


def _project_backward(saved, grad):
    x, weight = saved
    return grad @ weight.astype(x.dtype).T, outer(x, grad, weight.dtype)


project.defvjp(_project_forward, _project_backward)
