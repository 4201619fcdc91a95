"""Names of slices, their default meshes, and what is refused, all without jax or libtpu."""

import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.planning import slices, topologies


@pytest.mark.parametrize(("name", "slices", "devices", "replica", "fsdp"), (
    ("v5e:16x16", 1, 256, 16, 16),
    ("v6e:16x16", 1, 256, 16, 16),
    ("v4:8x8x8", 1, 512, 8, 64),
    ("v5p:8x8x8", 1, 512, 8, 64),
    ("tpu7x:4x4x4", 1, 128, 8, 16),
    ("v5e:16x16", 2, 512, 32, 16),
    ("v5e:1x1", 1, 1, 1, 1),
    ("h100:8x16", 1, 128, 16, 8),
    ("b200:8x1", 1, 8, 1, 8),
))
def test_default_meshes(name, slices, devices, replica, fsdp):
    topology = topologies.parse(name, slices)
    sizes = topologies.mesh_sizes(topology, None)
    assert topology.devices == devices and topology.name == name
    assert (sizes["replica"], sizes["fsdp"]) == (replica, fsdp)


@pytest.mark.parametrize(("name", "shape", "devices"), (
    ("v5p-8", "v5p:2x2x1", 4),
    ("v5p-512", "v5p:4x8x8", 256),
    ("v5p-640", "v5p:4x4x20", 320),
    ("v5p-1920", "v5p:4x12x20", 960),
    ("v5p-12288", "v5p:16x16x24", 6144),
    ("v4-1536", "v4:8x8x12", 768),
    ("v5litepod-256", "v5e:16x16", 256),
    ("v5e-8", "v5e:2x4", 8),
    ("v6e-128", "v6e:8x16", 128),
    ("tpu7x-128", "tpu7x:4x4x4", 128),
))
def test_the_cloud_s_own_names(name, shape, devices):
    """v4, v5p and tpu7x count TensorCores, two a chip; shapes of the cloud's tables."""
    found = topologies.parse(name)
    assert (found.name, found.devices) == (shape, devices)
    assert slices.cloud_name(found.generation, found.shape) == name.replace("v5e-", "v5litepod-")


def test_a_shape_without_a_name():
    assert slices.cloud_name("v5p", (2, 8, 8)) is None


def test_a_mesh_of_one_s_own():
    topology = topologies.parse("v5e:16x16", 2)
    sizes = topologies.mesh_sizes(topology, "replica:2,fsdp:-1,tensor:4")
    assert (sizes["replica"], sizes["fsdp"], sizes["tensor"]) == (2, 64, 4)


@pytest.mark.parametrize(("name", "slices", "mesh", "message"), (
    ("v7:8x8", 1, None, "generations are"),
    ("v5p-500", 1, None, "choose v5p-384 .* or v5p-512 .v5p:4x8x8."),
    ("v6e-512", 1, None, "counts chips.; choose v6e-128 .v6e:8x16. or v6e-256"),
    ("v3-32", 1, None, "generations are"),
    ("v5e", 1, None, "2 sizes, as in v5e:16x16"),
    ("v5e:8x8x8", 1, None, "2 sizes"),
    ("v5p:8x8", 1, None, "3 sizes, as in v5p:8x8x8"),
    ("v5e:0x16", 1, None, "2 sizes"),
    ("v5e:4x4", 0, None, "num_slices=0"),
    ("h100:8", 1, None, "GPUs of a node x nodes, as in h100:8x16"),
    ("h100:16x8", 1, None, "no node has 16 h100 joined by NVLink; write GPUs of a node x nodes"),
    ("h100:8x16", 2, None, "num_slices=2: of TPUs"),
    ("v5e:4x4", 1, "fsdp:8", "makes 8 devices and 1 x v5e:4x4 has 16"),
    ("v5e:4x4", 2, "fsdp:-1", "only replicas may span slices"),
))
def test_refusals(name, slices, mesh, message):
    with pytest.raises(ConfigError, match=message):
        topologies.mesh_sizes(topologies.parse(name, slices), mesh)
