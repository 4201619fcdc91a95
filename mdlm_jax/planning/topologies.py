"""TPU slices and GPU clusters by name, their default meshes, and TPU devices from libtpu without a TPU.

A slice's default mesh is replica x fsdp, not flat fsdp: over a whole slice libtpu turns the reduce-scatter of gradients
into an all-reduce, many times the bytes (found by compiling; `tests/planning` keeps watch). fsdp takes the last axis of
a 2D torus and the last two of a 3D one, so that a gather runs over whole rings. ``h100:8x16`` are 16 nodes of 8 GPUs;
fsdp takes a node. Nothing is compiled for GPUs. The cloud's own names, as v5p-512, are translated (`slices`).
"""

import dataclasses
import math
import re
from typing import Any

from mdlm_jax.config import MESH_AXES, parse_mesh
from mdlm_jax.errors import ConfigError
from mdlm_jax.planning import slices as slice_names
from mdlm_jax.planning.chips import GPUS

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_NODES = (1, 2, 4, 8)  # GPUs that NVLink joins, of the kinds in `GPUS`
_HOST = (2, 2, 1)  # chips of one host, libtpu's default
_CORES = {"tpu7x": 2}  # devices a chip; 1 elsewhere (v4's two cores act as one: megacore)


@dataclasses.dataclass(frozen=True)
class Topology:
    """``slices`` slices of ``shape`` chips each; of GPUs, ``shape`` is (of a node, nodes)."""

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape) * _CORES.get(self.generation, 1)

    @property
    def devices(self) -> int:
        return self.slices * self.devices_per_slice

    @property
    def gpu(self) -> bool:
        return self.generation in GPUS

    def default_mesh(self) -> dict[str, int]:
        """Axis -> size."""
        inner = self.shape[0] if self.gpu else math.prod(self.shape[1:])
        return dict.fromkeys(MESH_AXES, 1) | {"replica": self.devices // inner, "fsdp": inner}


def parse(name: str, slices: int = 1) -> Topology:
    """``"v5e:16x16"``, or as the cloud calls it, ``"v5litepod-256"``; ConfigError where there is no such slice."""
    name = slice_names.translated(name)
    generation, _, layout = name.partition(":")
    if generation in GPUS:
        return _parse_gpus(name, slices)
    if generation not in GENERATIONS:
        raise ConfigError(f"--topology={name}: generations are {', '.join(GENERATIONS)}, as in v5e:16x16 or v5p-512; "
                          f"or, by arithmetic, {', '.join(GPUS)}, as in h100:8x16")
    dimensions = _DIMENSIONS[generation]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", layout) or layout.count("x") + 1 != dimensions:
        example = f"{generation}:{'16x16' if dimensions == 2 else '8x8x8'}"
        raise ConfigError(f"--topology={name}: {generation} slices have {dimensions} sizes, as in {example}")
    if slices < 1:
        raise ConfigError(f"--num_slices={slices}: must be at least 1")
    return Topology(generation, tuple(int(n) for n in layout.split("x")), slices)


def _parse_gpus(name: str, slices: int) -> Topology:
    generation, _, layout = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", layout):
        raise ConfigError(f"--topology={name}: GPUs are given as GPUs of a node x nodes, as in {generation}:8x16")
    if (node := int(layout.partition("x")[0])) not in _NODES:
        raise ConfigError(f"--topology={name}: no node has {node} {generation} joined by NVLink; write GPUs of a node "
                          f"x nodes, with 1, 2, 4 or 8 of a node, as in {generation}:8x16")
    if slices != 1:
        raise ConfigError(f"--num_slices={slices}: of TPUs; give more nodes, as in {generation}:8x32")
    return Topology(generation, tuple(int(n) for n in layout.split("x")))


def mesh_sizes(topology: Topology, spec: str | None, default: dict[str, int] | None = None) -> dict[str, int]:
    """The mesh of ``spec`` (`config.parse_mesh`) with its -1 filled in; without one ``default``, or the topology's.

    Raises:
      ConfigError: the sizes do not multiply to the devices, or the slices do not divide ``replica``.
    """
    own = default or topology.default_mesh()
    sizes = own if spec is None else filled(spec, topology.devices, f"{topology.slices} x {topology.name}", own)
    if sizes["replica"] % topology.slices:
        raise ConfigError(f"train.mesh: replica={sizes['replica']} cannot be shared by {topology.slices} slices; make "
                          "it a multiple: only replicas may span slices")
    return sizes


def filled(spec: str, devices: int, where: str, own: dict[str, int]) -> dict[str, int]:
    """The mesh of ``spec`` with its -1 filled in.

    Args:
      where: what has the ``devices``, and own: a mesh that fits there, both for the message.

    Raises:
      ConfigError: the sizes do not multiply to the devices.
    """
    sizes = parse_mesh(spec)
    fixed = math.prod(size for size in sizes.values() if size > 0)
    sizes = {axis: devices // fixed if size < 0 else size for axis, size in sizes.items()}
    total = math.prod(sizes.values())
    if total != devices:
        raise ConfigError(f"train.mesh={spec!r} makes {total} devices and {where} has {devices}; change train.mesh, as "
                          f"in {mesh_text(own)}")
    return sizes


def mesh_text(sizes: dict[str, int]) -> str:
    """As `config.parse_mesh` reads it."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items() if size > 1) or "fsdp:1"


def make_mesh(topology: Topology, sizes: dict[str, int]):
    """A `jax.sharding.Mesh` over the topology's devices; replicas span slices, every other axis stays inside one.

    Raises:
      ConfigError: libtpu is missing or refuses the layout.
    """
    from mdlm_jax.models.sharding import arranged

    found = _devices(topology)
    if len(found) != topology.devices:
        raise ConfigError(f"--topology={topology.name}: libtpu gives {len(found)} devices, not {topology.devices}; "
                          "choose another")
    return arranged(sizes, found)


def _devices(topology: Topology) -> list:
    from jax.experimental import topologies

    arguments: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.generation == "v4":
        arguments["chip_config_name"] = "megacore"  # one device a chip; libtpu's default is two
    host = tuple(math.gcd(size, bound) for size, bound in zip((*topology.shape, 1), _HOST, strict=False))
    if host != _HOST:
        arguments["chips_per_host_bounds"] = host
    try:
        return topologies.get_topology_desc(topology.name, "tpu", **arguments).devices
    except Exception as error:  # jax raises several kinds; the first line says what libtpu said
        text = str(error).strip().splitlines()[0]
        if "libtpu" in text.lower() and "find" in text.lower() or "not found" in text.lower():
            text = "libtpu is not installed; pip install 'mdlm_jax[tpu]'"
        raise ConfigError(f"--topology={topology.name}: {text}") from None
