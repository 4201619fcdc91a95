"""What a decoding step works on, and the mesh it gets by default. Free of jax."""

import dataclasses
import math

from mdlm_jax.config import BATCH_AXES, MESH_AXES
from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Rows of ``slots`` tokens, ``window`` of them worked on at a time."""

    rows: int
    slots: int
    window: int

    def check(self, sizes: dict[str, int]) -> None:
        """ConfigError where the mesh cannot split the rows, or the window does not fit into the slots."""
        for name in ("rows", "slots", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)}: must be at least 1")
        if self.window > self.slots:
            raise ConfigError(f"--window={self.window}: more than the {self.slots} slots; make --slots larger")
        shards = math.prod(sizes[axis] for axis in BATCH_AXES)
        if self.rows % shards:
            raise ConfigError(f"--rows={self.rows}: the mesh splits rows over {shards} devices; make it a multiple")


CACHES = ("none", "prefix", "dual", "block")  # those of sampling.caching whose windows do not change within a block


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A prompt and the tokens to be generated behind it, block after block, ``per_forward`` of them a forward."""

    rows: int
    prompt: int
    new_tokens: int
    block: int
    per_forward: int

    @property
    def length(self) -> int:
        return self.prompt + self.new_tokens

    @property
    def steps(self) -> int:
        """Forwards a block."""
        return -(-self.block // self.per_forward)

    def check(self) -> None:
        """ConfigError where the blocks do not come out even."""
        for name, least in (("rows", 1), ("prompt", 0), ("new_tokens", 1), ("window", 1), ("per_forward", 1)):
            value = self.block if name == "window" else getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name}={value}: must be at least {least}")
        for name, value in (("prompt", self.prompt), ("new_tokens", self.new_tokens)):
            if value % self.block:
                raise ConfigError(f"--{name}={value}: must be a multiple of the block, --window={self.block}")
        if self.per_forward > self.block:
            raise ConfigError(f"--per_forward={self.per_forward}: must be at most a block, --window={self.block}")



def default_mesh(topology: Topology, network: TransformerConfig) -> dict[str, int]:
    """Axis -> size: weights stay where they are, so nothing is split over fsdp.

    Experts over as many devices of a slice as divide them, the weights of a dense network over as many as divide its
    heads; replicas over the rest.
    """
    axis, parts = ("expert", network.moe.experts) if network.moe else ("tensor", network.kv_heads)
    size = math.gcd(parts, topology.devices_per_slice)
    return dict.fromkeys(MESH_AXES, 1) | {axis: size, "replica": topology.devices // size}
