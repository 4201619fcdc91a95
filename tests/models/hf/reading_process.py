"""One process of the job of test_reader_processes.py: its shards of a checkpoint, and what they give together."""

import sys

from launch import _distributed


def main(directory: str, out: str) -> None:
    _distributed.join(_distributed.asked({}))
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    import mdlm_jax
    from mdlm_jax.models.sharding import make_mesh

    whole = mdlm_jax.load(directory).params  # on this process's first device
    model = mdlm_jax.load(directory, mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    for mine, reference in zip(jax.tree.leaves(model.params), jax.tree.leaves(whole), strict=True):
        for shard in mine.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(reference)[shard.index])
    logits = multihost_utils.process_allgather(model.logits(np.arange(40).reshape(4, 10)), tiled=True)
    if jax.process_index() == 0:
        np.save(out, logits)
    multihost_utils.sync_global_devices("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
