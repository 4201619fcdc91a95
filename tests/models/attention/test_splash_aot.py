"""The splash kernel, forward and gradient, compiled by the real XLA:TPU. Needs libtpu and minutes."""

import importlib.util
import subprocess
import sys

import pytest

from launch._planning import ENVIRONMENT
from tests.launch.commands import ROOT, environment

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'mdlm_jax[tpu]'"),
]

# A process of its own: libtpu reads the environment when it loads.
SCRIPT = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Places, Visibility
from mdlm_jax.models.sharding import BATCH_AXES
from mdlm_jax.planning import topologies

topology = topologies.parse("{topology}")
mesh = topologies.make_mesh(topology, topologies.mesh_sizes(topology, "{mesh}"))
for contract, block in (("bidirectional", 1), ("causal", 1), ("block_causal", 32), ("two_stream", 32)):
    def loss(query, key, value, segment):
        places = Places(segment, None)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            context = attend("splash", query, key, value, Visibility(places, places, contract, block))
        return context.astype(jnp.float32).sum()

    def shape(heads, dtype=jnp.bfloat16):
        sizes = (8, {length}, heads, 128) if heads else (8, {length})
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec(BATCH_AXES)))

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = step.lower(shape(8), shape(4), shape(4), shape(0, jnp.int32)).compile().as_text()
    print(contract, text.count('custom_call_target="tpu_custom_call"'))
"""


@pytest.mark.parametrize(("topology", "mesh", "length"), (
    ("v5e:2x2", "fsdp:4", 4096), ("v5e:2x2", "fsdp:2,tensor:2", 1000), ("v5p:2x2x1", "fsdp:2,context:2", 2048),
    ("v4:2x2x1", "fsdp:4", 4096), ("v6e:2x2", "replica:2,fsdp:2", 4096), ("tpu7x:2x2x1", "fsdp:8", 2048)))
def test_compiles(topology, mesh, length):


    script = SCRIPT.format(topology=topology, mesh=mesh, length=length)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment() | ENVIRONMENT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["bidirectional", "3", "causal", "3", "block_causal", "3", "two_stream", "3"]
