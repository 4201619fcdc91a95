"""One process of the jobs of test_processes.py: what it feeds and what noise it draws, gathered and written by one."""

import hashlib
import json
import sys

from launch import _distributed


def main(out: str, first: int, last: int) -> None:
    _distributed.join(_distributed.asked({}))
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from mdlm_jax.core import counts, levels
    from mdlm_jax.core.keys import row_keys
    from mdlm_jax.core.process import Process
    from mdlm_jax.data.pipeline import Pipeline
    from mdlm_jax.data.prefetch import prefetch
    from mdlm_jax.data.tokenizers import ByteTokenizer
    from mdlm_jax.models.sharding import batch_sharding, make_mesh
    from mdlm_jax.training import hosts
    from mdlm_jax.training.objectives.base import LEVEL, NOISE
    from mdlm_jax.training.step import NOISE_STREAM

    batch_size, rows = 16, 96
    tokenizer = ByteTokenizer()
    pipeline = Pipeline(np.repeat(np.arange(rows)[:, None], 12, 1), batch_size=batch_size, seed=7, packing="concat",
                        tokenizer=tokenizer)
    layout = batch_sharding(make_mesh({"replica": 2, "fsdp": -1}))
    process = Process(tokenizer.vocab_size, tokenizer.mask_id, 0.1)

    @jax.jit
    def noise(batch, step):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), NOISE_STREAM), step)
        index = jnp.arange(batch_size)
        u = levels.unit_levels(jax.random.fold_in(key, LEVEL), batch_size, "antithetic", index)
        keys = row_keys(jax.random.fold_in(key, NOISE), index)
        masked = counts.draw_counts(keys, u, batch["noise_mask"], levels.Uniform()).masked
        return u, masked, process.corrupt(keys, batch["tokens"], u, batch["noise_mask"])

    found = []
    with prefetch(pipeline, first, rows=hosts.local_rows(layout, batch_size)) as batches:
        for step in range(first, last):
            _, local = next(batches)
            batch = hosts.place(local, layout, batch_size)
            whole = multihost_utils.process_allgather((batch, noise(batch, step)), tiled=True)
            digest = hashlib.sha256()
            for leaf in jax.tree.leaves(whole):
                digest.update(np.ascontiguousarray(leaf).tobytes())
            found.append({"step": step, "ids": whole[0]["tokens"][:, 0].tolist(), "digest": digest.hexdigest()})
    if hosts.speaks():
        with open(out, "w") as file:
            json.dump({"processes": jax.process_count(), "devices": jax.device_count(), "steps": found}, file)
    hosts.barrier("written")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
