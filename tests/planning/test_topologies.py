"""Names of slices, their default meshes, and what is refused, all without jax or libtpu."""

import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.planning import topologies


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


def test_a_mesh_of_one_s_own():
    topology = topologies.parse("v5e:16x16", 2)
    sizes = topologies.mesh_sizes(topology, "replica:2,fsdp:-1,tensor:4")
    assert (sizes["replica"], sizes["fsdp"], sizes["tensor"]) == (2, 64, 4)


@pytest.mark.parametrize(("name", "slices", "mesh", "message"), (
    ("v7:8x8", 1, None, "generations are"),
    ("v5e", 1, None, "2 sizes, as in v5e:16x16"),
    ("v5e:8x8x8", 1, None, "2 sizes"),
    ("v5p:8x8", 1, None, "3 sizes, as in v5p:8x8x8"),
    ("v5e:0x16", 1, None, "2 sizes"),
    ("v5e:4x4", 0, None, "num_slices=0"),
    ("h100:8", 1, None, "GPUs of a node x nodes, as in h100:8x16"),
    ("h100:8x16", 2, None, "num_slices=2: of TPUs"),
    ("v5e:4x4", 1, "fsdp:8", "makes 8 devices and 1 x v5e:4x4 has 16"),
    ("v5e:4x4", 2, "fsdp:-1", "only replicas may span slices"),
))
def test_refusals(name, slices, mesh, message):
    with pytest.raises(ConfigError, match=message):
        topologies.mesh_sizes(topologies.parse(name, slices), mesh)
