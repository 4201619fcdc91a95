"""What antithetic counts with half-size heads cost and gain: ``python -m benchmarks.half_head [--json=FILE]``.

First table: the compiled train step with and without the half-size head, on one and on eight virtual CPU devices:
matrix-product FLOPs (loops counted as often as they turn), scratch memory, number and bytes of the collectives.
Second table: the standard deviation of the loss estimate under each coupling of the noise levels, for one network
trained a little on the byte text of a copy language, relative to independent levels.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdlm_jax.config import TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.data.languages.registry import make
from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import batch_sharding, make_mesh
from mdlm_jax.planning import collectives, hlo
from mdlm_jax.training import optimizers
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.state import abstract_state
from mdlm_jax.training.step import make_train_step

MASKS = ("noise_mask", "loss_mask")
NAMES = ("tokens", "attention_mask", "positions", *MASKS)


def compile_step(devices: int, half_head: bool, options):
    """The train step on ``devices`` devices, every weight split over them, ``options.rows`` rows each."""
    mesh = make_mesh({"replica": 1, "fsdp": -1, "tensor": 1}, jax.devices()[:devices])
    network = network_of(options)
    rows = options.rows * devices
    train = TrainConfig(batch_size=rows, head_budget=options.head_budget)
    process = Process(options.vocab, options.vocab - 1)
    objective = CountObjective(
        network, process, half_head=half_head, head_budget=options.head_budget, data_shards=devices
    )
    optimizer = optimizers.optimizer(train)
    sharding = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((rows, options.length), bool if name in MASKS else jnp.int32, sharding=sharding)
        for name in NAMES
    }
    state = abstract_state(objective, optimizer, True, mesh)
    return make_train_step(objective, optimizer, train, mesh).lower(state, batch).compile()


def network_of(options) -> TransformerConfig:
    width = options.d_model
    return TransformerConfig(options.vocab, options.vocab, options.layers, width, 4, 4, 4 * width)


def step_costs(devices: int, half_head: bool, options) -> dict:
    """Per device: FLOPs of all products and of the head's, scratch bytes, collectives."""
    compiled = compile_step(devices, half_head, options)
    program = hlo.parse(compiled.as_text())
    products, travels = hlo.matmuls(program), collectives.totals(collectives.find(program))
    head = sum(flops for (shape, depth), flops in products.items() if options.vocab in (*shape, depth))
    return {
        "devices": devices,
        "head": "half" if half_head else "full",
        "flops": sum(products.values()),
        "head_flops": head,
        "scratch_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "collectives": {kind: total["number"] for kind, total in travels.items()},
        "collective_bytes": {kind: total["bytes"] for kind, total in travels.items()},
    }


# Spread ---------------------------------------------------------------------------------------------------------------


COUPLINGS = {"iid": ("iid", False), "stratified": ("stratified", False), "antithetic": ("antithetic", False),
             "antithetic, complementary": ("antithetic", True)}


def trained(options):
    """A small time-free network after some steps on a copy language: (objective, parameters, 4096 further rows)."""
    language = make("copy")
    rng = np.random.default_rng(0)
    size = language.vocab_size + 1
    network = TransformerConfig(size, size, 2, 64, 4, 4, 256)
    objective = CountObjective(network, Process(size, size - 1))
    params = jax.jit(objective.init)(jax.random.key(0))
    optimizer = optax.adam(2e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, tokens, key):
        rows = jnp.arange(tokens.shape[0])

        def mean(params):
            return objective.loss(params, batch_of(tokens), key, rows, tokens.shape[0]).totals().mean()

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    for n in range(options.train_steps):
        tokens = language.sample(rng, 32, options.spread_length).astype(np.int32)
        params, state, loss = step(params, state, tokens, jax.random.fold_in(jax.random.key(1), n))
    return objective, params, float(loss), language.sample(rng, 4096, options.spread_length).astype(np.int32)


def batch_of(tokens) -> dict:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    ones = jnp.ones(tokens.shape, jnp.int32)
    return dict(zip(NAMES, (tokens, ones, positions, ones == 1, ones == 1), strict=True))


def spread(objective, params, tokens, rows: int, coupling: str, complementary: bool, fresh_rows: bool, draws: int):
    """Mean and standard deviation of the loss of ``rows`` rows over ``draws`` noise draws, nats per token.

    ``fresh_rows``: every draw has rows of its own, as in training; otherwise the first rows throughout: noise alone.
    """
    objective = CountObjective(
        objective.network, objective.process, coupling=coupling, half_head=False, complementary=complementary
    )

    @jax.jit
    def all_losses(params, tokens):
        def one(n):
            first = (n * rows) % (tokens.shape[0] - rows) if fresh_rows else 0
            batch = batch_of(jax.lax.dynamic_slice_in_dim(tokens, first, rows))
            key = jax.random.fold_in(jax.random.key(7), n)
            return objective.loss(params, batch, key, jnp.arange(rows), rows).totals().mean()

        return jax.lax.map(one, jnp.arange(draws))

    losses = np.asarray(all_losses(params, tokens), np.float64)
    return losses.mean(), losses.std(ddof=1)


def spread_table(options) -> list[dict]:
    objective, params, loss, tokens = trained(options)
    print(f"\nspread of the loss estimate (training loss {loss:.3f} nats per token, length {options.spread_length}, "
          f"{options.draws} draws)")
    print(f"{'rows':>5} {'data':>6}  " + "".join(f"{name:>28}" for name in COUPLINGS))
    table = []
    for fresh in (False, True):
        for rows in options.batches:
            found = {
                name: spread(objective, params, tokens, rows, *how, fresh, options.draws)
                for name, how in COUPLINGS.items()
            }
            base = found["iid"][1]
            cells = "".join(f"{f'{std:.4f} ({std / base:.2f})':>28}" for _, std in found.values())
            print(f"{rows:>5} {'fresh' if fresh else 'fixed':>6}  {cells}", flush=True)
            table.append({"rows": rows, "data": "fresh" if fresh else "fixed",
                          **{name: {"mean": mean, "std": std} for name, (mean, std) in found.items()}})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50258)
    parser.add_argument("--d_model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4, help="rows on each device")
    parser.add_argument("--head_budget", type=int, default=1 << 40, help="logits alive at once; the default: all")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batches", type=int, nargs="*", default=[2, 8, 32], help="rows of a batch; none: no spread")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--train_steps", type=int, default=300)
    parser.add_argument("--spread_length", type=int, default=64)
    parser.add_argument("--json", default="", help="also write the numbers here")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    network = network_of(options)
    print(f"train step: V={options.vocab:,} D={options.d_model} layers={options.layers} L={options.length}, "
          f"{options.rows} rows a device; per device")
    costs = []
    for devices in options.devices:
        for half in (False, True):
            one = step_costs(devices, half, options)
            costs.append(one)
            kinds = ", ".join(f"{number} {kind} {one['collective_bytes'][kind] / 1e6:.1f} MB"
                              for kind, number in sorted(one["collectives"].items()))
            print(f"  {devices} device(s), {one['head']} head: {one['flops'] / 1e9:.2f} GFLOP, of which head "
                  f"{one['head_flops'] / 1e9:.2f}; scratch {one['scratch_bytes'] / 1e6:.0f} MB; {kinds or 'none'}",
                  flush=True)
    tokens = options.rows * options.length
    for name, head in (("full", tokens), ("half", options.rows // 2 * (options.length + 1))):
        print(f"  formula, {name} head: {flops.train_flops(network, tokens, options.length, head) / 1e9:.2f} GFLOP")
    table = spread_table(options) if options.batches else []
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "step": costs, "spread": table}, file, indent=1)


if __name__ == "__main__":
    main()
