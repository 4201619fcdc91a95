"""Our network and train step as a contender of `benchmarks.peers`."""

from benchmarks.peer_worker import parser, prepare, serve, token_rows


def main() -> None:
    p = parser()
    p.add_argument("--head", choices=("half", "full"), default="half")
    p.add_argument("--head_budget", type=int, default=0, help="logits alive at once; 0: the library's default")
    options = p.parse_args()
    reply = prepare(options)
    import jax
    import jax.numpy as jnp
    import optax

    from launch._memory import keep_freed_memory
    from mdlm_jax.config import TrainConfig
    from mdlm_jax.core.process import Process
    from mdlm_jax.models import api
    from mdlm_jax.models.config import TransformerConfig
    from mdlm_jax.models.sharding import make_mesh
    from mdlm_jax.training import optimizers
    from mdlm_jax.training.objectives.count import CountObjective
    from mdlm_jax.training.state import sharded_init
    from mdlm_jax.training.step import make_train_step

    keep_freed_memory()  # as launch.train does
    network = TransformerConfig(
        options.vocab + 1, options.vocab, options.layers, options.d_model, options.heads, options.heads, options.d_ff
    )
    train = TrainConfig(batch_size=options.rows, ema_decay=options.ema)
    budget = options.head_budget or train.head_budget
    process = Process(options.vocab + 1, options.vocab, head_size=options.vocab)
    objective = CountObjective(network, process, half_head=options.head == "half", head_budget=budget)
    optimizer = optimizers.optimizer(train)
    mesh = make_mesh({"fsdp": -1})
    run_step = make_train_step(objective, optimizer, train, mesh)
    held = {"state": sharded_init(objective, optimizer, options.ema > 0, mesh, 0)}

    tokens = jnp.asarray(token_rows(options), jnp.int32)
    ones = jnp.ones(tokens.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(options.length, dtype=jnp.int32), tokens.shape)
    batch = {"tokens": tokens, "attention_mask": ones, "positions": positions, "noise_mask": ones == 1,
             "loss_mask": ones == 1}
    logits = jax.jit(lambda params, tokens: api.apply(network, params, tokens).logits())

    def forward() -> float:
        return float(logits(held["state"].trainable["network"], tokens)[0, 0, 0])

    def step() -> float:
        held["state"], metrics = run_step(held["state"], batch)
        jax.block_until_ready(held["state"])
        return float(metrics["totals"].mean())

    about = {
        "parameters": api.num_parameters(network),
        "versions": f"jax {jax.__version__}, optax {optax.__version__}",
        "head_positions": objective.head_positions(options.rows, options.length),
        "contains": "antithetic count NELBO, gradient, clip by global norm, AdamW, "
                    f"{'EMA' if options.ema else 'no EMA'}, norms of gradient and update; state donated; "
                    f"head on {options.head} slots, {budget} logits alive at once, recomputed in the backward pass",
    }
    serve(options, reply, about, {"forward": forward, "step": step})


if __name__ == "__main__":
    main()
