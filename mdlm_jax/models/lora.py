"""Low-rank adapters (LoRA, arXiv 2106.09685) over the parameter tree of any network here: pure functions of dicts.

A leaf W becomes W + alpha / rank * A B, with A and B on the axes that W contracts and makes: query [D, N, H] has
A [D, r] and B [r, N, H]. Stacked layers and experts have one adapter each. Adapters are a dict {path: {"a", "b"}}; only
they train.
"""

import dataclasses
import fnmatch
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.errors import ConfigError
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.shapes import shapes
from mdlm_jax.models.sharding import weight_sharding

# Leaves that are matrices, with the number of axes they contract.
_CONTRACTED = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1, "router": 1, "shared_gate": 1,
               "shared_up": 1, "shared_down": 1, "head": 1, "embedding": 1}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which leaves have adapters, and how large.

    Attributes:
      rank: r.
      alpha: the product counts alpha / rank times.
      targets: patterns of paths, as in ``*/attention/*`` or ``layers/mlp/up``.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | str = ("*/attention/*", "*/mlp/*", "*/moe/shared_*")

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha={self.alpha}: must be positive")
        if isinstance(self.targets, str) or not self.targets:
            raise ConfigError(f"lora.targets={self.targets!r}: must be a tuple of patterns, as in ('*/attention/*',)")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def adapted_paths(lora: Lora, network: TransformerConfig) -> list[str]:
    """The leaves that get adapters, in the order of the tree.

    Raises:
      ConfigError: a pattern that no matrix of this network fits.
    """
    matrices = [path for path in shapes(network) if path.split("/")[-1] in _CONTRACTED]
    for pattern in lora.targets:
        if not fnmatch.filter(matrices, pattern) and pattern not in Lora.targets:  # the default covers all kinds
            raise ConfigError(f"lora.targets: {pattern!r} fits no matrix of this network; it has {', '.join(matrices)}")
    chosen = [path for path in matrices if any(fnmatch.fnmatchcase(path, pattern) for pattern in lora.targets)]
    if not chosen:
        raise ConfigError(f"lora.targets={lora.targets}: fit no matrix of this network; they are {', '.join(matrices)}")
    return chosen


def init(lora: Lora, network: TransformerConfig, key: jax.Array) -> dict:
    """Fresh adapters, float32: A normal with variance 1 / inputs, B zero, so that nothing changes at the start."""
    sizes, adapters = shapes(network), {}
    for i, path in enumerate(adapted_paths(lora, network)):
        stack, inputs, outputs = _axes(path, sizes[path])
        noise = jax.random.normal(jax.random.fold_in(key, i), (*stack, *inputs, lora.rank), jnp.float32)
        b = jnp.zeros((*stack, lora.rank, *outputs), jnp.float32)
        adapters[path] = {"a": noise * math.prod(inputs) ** -0.5, "b": b}
    return adapters


def apply(lora: Lora, params: dict, adapters: dict) -> dict:
    """The parameters with the adapters added, each leaf in its own dtype; differentiable in ``adapters``.

    Sums are made in float32, of a stacked leaf one layer at a time: no leaf is ever whole in float32. To train on a
    bfloat16 base, rounding of the sum limits how small a change is seen.
    """
    return _mapped(params, adapters, lambda path, leaf, a, b: _added(lora, path, leaf, a, b))


def merge(lora: Lora, params: dict, adapters: dict) -> dict:
    """The same, once and for all, for export and sampling: leaf by leaf, so that one product is alive at a time."""
    add = jax.jit(_added, static_argnums=(0, 1))
    return _mapped(params, adapters, lambda path, leaf, a, b: add(lora, path, leaf, a, b).block_until_ready())


def shardings(lora: Lora, network: TransformerConfig, mesh: Mesh) -> dict:
    """A ``NamedSharding`` for each adapter: the axes of its leaf, the rank whole."""
    axes, sizes, layout = api.logical_axes(network), shapes(network), {}
    for path in adapted_paths(lora, network):
        names = _leaf(axes, path)
        stack, inputs, outputs = _axes(path, sizes[path])
        cut = len(stack) + len(inputs)
        layout[path] = {
            "a": weight_sharding(mesh, (*names[:cut], None), (*stack, *inputs, lora.rank)),
            "b": weight_sharding(mesh, (*names[: len(stack)], None, *names[cut:]), (*stack, lora.rank, *outputs)),
        }
    return layout


def _axes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Stacked, contracted and made axes of a leaf."""
    folder, _, name = path.rpartition("/")
    stacked = int("/" in path) + (folder.endswith("/moe") and name in ("gate", "up", "down"))
    cut = stacked + _CONTRACTED[name]
    return shape[:stacked], shape[stacked:cut], shape[cut:]


def _added(lora: Lora, path: str, leaf: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    stack, inputs, outputs = (len(part) for part in _axes(path, leaf.shape))
    letters = iter("abcdefgh")
    s, i, o = ("".join(next(letters) for _ in range(count)) for count in (max(stack - 1, 0), inputs, outputs))
    wide = jnp.promote_types(leaf.dtype, jnp.float32)

    def add(leaf: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        product = jnp.einsum(f"{s}{i}r,{s}r{o}->{s}{i}{o}", a.astype(wide), b.astype(wide))
        return (leaf.astype(wide) + lora.scale * product).astype(leaf.dtype)

    return jax.lax.map(lambda one: add(*one), (leaf, a, b)) if stack else add(leaf, a, b)


def _mapped(params: dict, adapters: dict, function) -> dict:
    """``params`` with the leaves that have adapters replaced by function(path, leaf, a, b)."""
    folders = {path.split("/")[0] for path in adapters}
    mapped = {}
    for name, node in params.items():
        inner = {path[len(name) + 1 :]: pair for path, pair in adapters.items() if path.split("/")[0] == name}
        if name not in folders:
            mapped[name] = node
        elif isinstance(node, dict):
            mapped[name] = _mapped(node, inner, lambda path, *leaves, name=name: function(f"{name}/{path}", *leaves))
        else:
            mapped[name] = function(name, node, inner[""]["a"], inner[""]["b"])
    return mapped


def _leaf(tree: dict, path: str):
    for name in path.split("/"):
        tree = tree[name]
    return tree
