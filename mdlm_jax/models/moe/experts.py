"""The layer: router, experts, shared expert; and its form on a mesh.

On a mesh each device holds X / expert experts, with F split over tensor and D over fsdp, and the tokens of its own rows
and positions. `jax.shard_map` fixes what travels, per layer:

    forward    weights all-gathered over fsdp; tokens, indices and weights of visits all-gathered over expert;
               results summed and scattered over expert, then summed over tensor
    backward   the transposes; gradients of the weights summed over replica and context too

Nothing is dropped and shapes are static: every device has room for all visits of the tokens of its expert group, and
computes those to its own experts only. Sending each token to every device of the group costs (expert - 1) T D numbers;
an all-to-all of visits would cost about k T D, so it is worth its complexity for expert > k alone.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mdlm_jax.core.linear import project
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.layers import fan_in, weight
from mdlm_jax.models.moe.grouped import grouped_swiglu
from mdlm_jax.models.moe.routing import RouterStats, Routing, route, router_logits, router_stats
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, gather_weight, sum_over_tensor, weight_sharding

_EXPERTS = (("experts", "embed", "mlp"), ("experts", "embed", "mlp"), ("experts", "mlp", "embed"))
_SHARED = (("embed", "mlp"), ("embed", "mlp"), ("mlp", "embed"))
_TOKENS = PartitionSpec(BATCH_AXES, LENGTH_AXIS)


class MixtureOfExperts(nn.Module):
    """x [B, L, D] -> y [B, L, D] and the router's sums over tokens whose segment is not 0.

    ``index`` [B, L] int32: of the tokens in their rows, which says the block whose pool they share; None: 0, 1, ...
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, segment: jax.Array | None = None, index: jax.Array | None = None
    ) -> tuple[jax.Array, RouterStats]:
        c, moe = self.config, self._moe
        logits = router_logits(x, self._router())
        if moe.block and index is None:
            half = x.shape[1] // 2 if c.attention == "two_stream" else x.shape[1]
            index = jnp.broadcast_to(jnp.arange(x.shape[1]) % half, x.shape[:2])
        routing = route_rows(moe, logits, self._bias(), index, segment)
        experts = self._swiglu("", (moe.experts,), moe.d_ff, _EXPERTS, x.dtype)
        shared = self._swiglu("shared_", (), moe.shared_d_ff, _SHARED, x.dtype) if moe.shared_d_ff else ()
        y = visit_experts(x, routing, experts, shared)
        return y, router_stats(logits, routing, None if segment is None else segment != 0)

    @property
    def _moe(self) -> MoEConfig:
        assert self.config.moe is not None
        return self.config.moe

    def _router(self) -> jax.Array:
        shape = (self.config.d_model, self._moe.experts)
        # Whole on every device, so that no choice depends on the mesh by more than the order of one dot product.
        return gather_weight(weight(self, "router", shape, ("embed", None), fan_in(shape[0])), ("embed", None))

    def _swiglu(self, prefix: str, leading: tuple[int, ...], f: int, axes, dtype) -> tuple[jax.Array, ...]:
        """gate, up and down in the compute dtype, laid out as they are stored."""
        c, d = self.config, self.config.d_model
        inits = (fan_in(d), fan_in(d), fan_in(f, (2 * c.layers) ** -0.5))
        names, shapes = ("gate", "up", "down"), ((d, f), (d, f), (f, d))
        rows = zip(names, shapes, axes, inits, strict=True)
        return tuple(weight(self, prefix + n, leading + shape, ax, init).astype(dtype) for n, shape, ax, init in rows)

    def _bias(self) -> jax.Array | None:
        moe = self._moe
        if not moe.selection_bias:
            return None
        bias = weight(self, "router_bias", (moe.experts,), (None,), nn.initializers.zeros)
        return bias if moe.bias_in_weight else jax.lax.stop_gradient(bias)


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


def visit_experts(x: jax.Array, routing: Routing, experts: tuple, shared: tuple = ()) -> jax.Array:
    """The layer after its router, on the mesh that is set or on one device.

    Args:
      x: [B, L, D]; routing: of [B, L].
      experts: gate and up [X, D, F], down [X, F, D]; shared: gate and up [D, Fs], down [Fs, D], or nothing.
    """
    index, weights = routing.index, routing.weight.astype(x.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        y = _visit(x, index, weights, *experts)
        return y + _swiglu(x, *shared) if shared else y
    layout = [
        tuple(weight_sharding(mesh, axes, w.shape).spec for axes, w in zip(table, group, strict=True)) if group else ()
        for table, group in ((_EXPERTS, experts), (_SHARED, shared))
    ]
    local: Callable[..., jax.Array] = functools.partial(_on_one_device, *layout)
    run = jax.shard_map(local, in_specs=(_TOKENS,) * 3 + tuple(layout), out_specs=_TOKENS, check_vma=False)
    return run(x, index, weights, experts, shared)


def _swiglu(x, gate, up, down):
    return project(jax.nn.silu(project(x, gate)) * project(x, up), down)


def _visit(x, index, weights, gate, up, down):
    """`grouped_swiglu` over [B, L]."""
    tokens, experts, shares = (z.reshape(-1, z.shape[-1]) for z in (x, index, weights))
    return grouped_swiglu(tokens, experts, shares, gate, up, down).reshape(x.shape)


def _on_one_device(expert_layout, shared_layout, x, index, weights, experts, shared):
    """What a device does with its part of each operand, laid out as `visit_experts` says."""
    y = _visit_own(expert_layout, x, index, weights, experts)
    y = sum_over_tensor(y) if "tensor" in expert_layout[0] else y
    if not shared:
        return y
    z = _swiglu(x, *map(_gather, shared, shared_layout))
    return y + (sum_over_tensor(z) if "tensor" in shared_layout[0] else z)


def _visit_own(layout, x, index, weights, experts):
    """The visits of this device's tokens, each computed where its expert is; partial sums over tensor."""
    experts = tuple(map(_gather, experts, layout))
    if "expert" not in layout[0]:
        return _visit(x, index, weights, *experts)
    x, index, weights = (jax.lax.all_gather(z, "expert", axis=0, tiled=True) for z in (x, index, weights))
    first = jax.lax.axis_index("expert") * experts[0].shape[0]
    y = _visit(x, index - first, weights, *experts)
    return jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)


def _gather(w: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A local part, whole again along fsdp."""
    return jax.lax.all_gather(w, "fsdp", axis=spec.index("fsdp"), tiled=True) if "fsdp" in spec else w
