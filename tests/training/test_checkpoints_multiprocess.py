"""Two processes of four devices each save and restore one checkpoint together; one process of eight reads it."""

import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.training import checkpoints, manifest
from mdlm_jax.training.checkpoints import Checkpoints

WORKER = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    jax.config.update("jax_num_cpu_devices", 4)
    rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, cluster_detection_method="deactivate")
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from mdlm_jax.training.checkpoints import Checkpoints

    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def state(step):
        table = np.arange(32, dtype=np.float32).reshape(16, 2) * step
        key = jax.jit(lambda: jax.random.key(step), out_shardings=whole)()
        return {"table": jax.make_array_from_callback((16, 2), split, lambda i: table[i]), "key": key}

    keeper = Checkpoints(directory, keep=2)
    for step in (1, 2, 3):
        keeper.save(step, state(step), {"position": step}, {"config.json": "{}"})
    if rank == 0:
        assert keeper.steps() == [2, 3]
        with open(keeper.path(3) / "meta.json", "a") as file:
            file.write(" ")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    restored = keeper.restore(abstract)
    assert restored.step == 2 and restored.meta == {"position": 2}
    for mine, expected in zip(restored.tree["table"].addressable_shards, state(2)["table"].addressable_shards):
        np.testing.assert_array_equal(np.asarray(mine.data), np.asarray(expected.data))
    keeper.save(3, state(30), {"position": 30}, {})
    print("done", rank, flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_and_one_reads_it(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    workers = [
        subprocess.Popen([*command, str(rank), str(port), str(tmp_path)], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=180)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    keeper = Checkpoints(tmp_path)
    assert keeper.steps() == [2, 3]
    assert [manifest.verify(keeper.path(step)) for step in (2, 3)] == [[], []]
    restored = keeper.restore(checkpoints.abstract(keeper.path(3)))
    assert restored.meta == {"position": 30}
    np.testing.assert_array_equal(np.asarray(restored.tree["table"]), np.arange(32.0).reshape(16, 2) * 30)
    assert jnp.array_equal(jax.random.key_data(restored.tree["key"]), jax.random.key_data(jax.random.key(30)))
