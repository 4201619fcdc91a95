"""The layer: router, experts, shared expert; and its form on a mesh.

On a mesh each device holds X / expert experts, with F split over tensor and D over fsdp, and the tokens of its own rows
and positions. `jax.shard_map` fixes what travels, per layer:

    forward    weights all-gathered over fsdp; tokens, indices and weights of visits all-gathered over expert;
               results summed over tensor and scattered back over expert
    backward   the transposes; gradients of the weights summed over replica and context too

Nothing is dropped and shapes are static: every device has room for all visits of the tokens of its expert group, and
computes those to its own experts only. Sending each token to every device of the group costs (expert - 1) T D numbers;
an all-to-all of visits would cost about k T D, so it is worth its complexity for expert > k alone.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mdlm_jax.core.linear import project
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.layers import fan_in, matrix, weight
from mdlm_jax.models.moe.grouped import grouped_swiglu
from mdlm_jax.models.moe.routing import RouterStats, Routing, route, router_logits, router_stats
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, gather_weight, weight_sharding

_AXES = {"gate": ("experts", "embed", "mlp"), "up": ("experts", "embed", "mlp"), "down": ("experts", "mlp", "embed")}
_TOKENS = PartitionSpec(BATCH_AXES, LENGTH_AXIS)


class MixtureOfExperts(nn.Module):
    """x [B, L, D] -> y [B, L, D] and the router's sums over tokens whose segment is not 0."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, segment: jax.Array | None = None, order: jax.Array | None = None
    ) -> tuple[jax.Array, RouterStats]:
        c, moe = self.config, self.config.moe
        d, f = c.d_model, moe.d_ff
        logits = router_logits(x, self._router())
        if moe.block and order is None:
            half = x.shape[1] // 2 if c.attention == "two_stream" else x.shape[1]
            order = jnp.broadcast_to(jnp.arange(x.shape[1]) % half, x.shape[:2])
        routing = route_rows(moe, logits, self._bias(), order, segment)
        gate, up = (self._experts(name, (d, f), fan_in(d), x.dtype) for name in ("gate", "up"))
        down = self._experts("down", (f, d), fan_in(f, (2 * c.layers) ** -0.5), x.dtype)
        y = visit_experts(x, routing, gate, up, down)
        if moe.shared_d_ff:
            y = y + self._shared(x)
        return y, router_stats(logits, routing, None if segment is None else segment != 0)

    def _router(self) -> jax.Array:
        shape = (self.config.d_model, self.config.moe.experts)
        # Whole on every device, so that no choice depends on the mesh by more than the order of one dot product.
        return gather_weight(weight(self, "router", shape, ("embed", None), fan_in(shape[0])), ("embed", None))

    def _experts(self, name: str, shape: tuple[int, int], init, dtype) -> jax.Array:
        return weight(self, name, (self.config.moe.experts, *shape), _AXES[name], init).astype(dtype)

    def _bias(self) -> jax.Array | None:
        moe = self.config.moe
        if not moe.selection_bias:
            return None
        bias = weight(self, "router_bias", (moe.experts,), (None,), nn.initializers.zeros)
        return bias if moe.bias_in_weight else jax.lax.stop_gradient(bias)

    def _shared(self, x: jax.Array) -> jax.Array:
        c, f = self.config, self.config.moe.shared_d_ff
        gate = matrix(self, "shared_gate", (c.d_model, f), ("embed", "mlp"), fan_in(c.d_model), x.dtype)
        up = matrix(self, "shared_up", (c.d_model, f), ("embed", "mlp"), fan_in(c.d_model), x.dtype)
        init = fan_in(f, (2 * c.layers) ** -0.5)
        down = matrix(self, "shared_down", (f, c.d_model), ("mlp", "embed"), init, x.dtype)
        return project(jax.nn.silu(project(x, gate)) * project(x, up), down)


def route_rows(moe: MoEConfig, logits: jax.Array, bias, order, segment) -> Routing:
    """`route`, on a mesh each device for its own tokens: the partitioner would gather all scores to choose among them.

    It has to where the positions of a block may lie on several devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or (moe.block and mesh.shape[LENGTH_AXIS] > 1):
        return route(moe, logits, bias, order=order, segment=segment)
    run = jax.shard_map(
        lambda logits, bias, order, segment: route(moe, logits, bias, order=order, segment=segment),
        in_specs=(_TOKENS, PartitionSpec(), _TOKENS, _TOKENS), out_specs=_TOKENS, check_vma=False,
    )
    return run(logits, bias, order, segment)


def visit_experts(x: jax.Array, routing: Routing, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """x [B, L, D], gate and up [X, D, F], down [X, F, D] -> [B, L, D], on the mesh that is set or on one device."""
    index, weights = routing.index, routing.weight.astype(x.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _swiglu(x, index, weights, gate, up, down)
    layout = [weight_sharding(mesh, _AXES[name], w.shape).spec for name, w in zip(_AXES, (gate, up, down), strict=True)]
    local = functools.partial(_on_one_device, layout)
    run = jax.shard_map(local, in_specs=(_TOKENS,) * 3 + tuple(layout), out_specs=_TOKENS, check_vma=False)
    return run(x, index, weights, gate, up, down)


def _swiglu(x, index, weights, gate, up, down):
    """`grouped_swiglu` over [B, L]."""
    flat = (z.reshape(-1, z.shape[-1]) for z in (x, index, weights))
    return grouped_swiglu(*flat, gate, up, down).reshape(x.shape)


def _on_one_device(layout, x, index, weights, *experts):
    """What a device does with its part of each operand, laid out as `visit_experts` says."""
    gate, up, down = (_gather(w, spec) for w, spec in zip(experts, layout, strict=True))
    experts_split, mlp_split = layout[0][0] is not None, layout[0][2] is not None
    if experts_split:
        x, index, weights = (jax.lax.all_gather(z, "expert", axis=0, tiled=True) for z in (x, index, weights))
        index = index - jax.lax.axis_index("expert") * gate.shape[0]
    y = _swiglu(x, index, weights, gate, up, down)
    if experts_split:
        y = jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)
    return _sum_over_tensor(y) if mlp_split else y


def _gather(w: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A local part, whole again along fsdp."""
    return jax.lax.all_gather(w, "fsdp", axis=spec.index("fsdp"), tiled=True) if "fsdp" in spec else w


@jax.custom_vjp
def _sum_over_tensor(y: jax.Array) -> jax.Array:
    """Sum of the tensor axis' partial results, with a gradient that does not travel.

    `shard_map` gives each of the n devices that hold one copy of a result 1/n of its cotangent and expects them to be
    summed, as the transpose of psum does; they are equal, so n times one's own is that sum.
    """
    return jax.lax.psum(y, "tensor")


_sum_over_tensor.defvjp(
    lambda y: (_sum_over_tensor(y), None), lambda _, grad: (grad * jax.lax.axis_size("tensor"),)
)
