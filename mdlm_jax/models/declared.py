"""What follows from a network's declared weights: fresh ones, and shapes and shardings without running anything."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Generic, TypeVar

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh

from mdlm_jax.models.sharding import weight_sharding

Config = TypeVar("Config")  # what describes the network


@dataclasses.dataclass(frozen=True)
class Declared(Generic[Config]):
    """The weights that ``make(config, key)`` declares in a few tokens' run, each in a box with its logical axes."""

    make: Callable[[Config, jax.Array], dict]

    def init(self, config: Config, key: jax.Array) -> dict:
        """Fresh parameters, float32."""
        return nn.unbox(_boxed(self.make, config, key))

    def abstract(self, config: Config) -> dict:
        """The parameter tree as ``ShapeDtypeStruct``s."""
        return self._map(lambda box: box.value, config)

    def logical_axes(self, config: Config) -> dict:
        """The parameter tree with a tuple of logical axis names at each leaf."""
        return self._map(lambda box: tuple(box.names), config)

    def shardings(self, config: Config, mesh: Mesh) -> dict:
        """The parameter tree with a ``NamedSharding`` at each leaf."""
        return self._map(lambda box: weight_sharding(mesh, tuple(box.names), box.value.shape), config)

    def num_parameters(self, config: Config) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract(config)))

    def _map(self, function: Callable, config: Config) -> dict:
        boxes = _shapes(self.make, config)
        return jax.tree.map(function, boxes, is_leaf=lambda node: isinstance(node, nn.meta.AxisMetadata))


@functools.lru_cache(maxsize=64)
def _shapes(make: Callable, config: Config) -> dict:
    """Shapes in boxes with their axes. Kept, since tracing a network takes a tenth of a second to several."""
    return jax.eval_shape(lambda: _boxed(make, config, jax.random.key(0)))


def _boxed(make: Callable, config: Config, key: jax.Array) -> dict:
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # a few tokens cannot be split over devices
        return make(config, key)
