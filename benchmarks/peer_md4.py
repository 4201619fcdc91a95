"""md4 (github.com/google-deepmind/md4) as a contender of `benchmarks.peers`: its model, loss and train step, imported
from a checkout of the user's (``--md4``) in an environment of its own. Nothing of it is part of this repository.

Its published OpenWebText configuration is loaded and changed only where the sizes ask for it, with ``time_features``
none and therefore no conditioning.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

from benchmarks.peer_worker import parser, prepare, serve, token_rows

DATA_ONLY = ("tensorflow", "tensorflow_datasets", "transformers", "datasets", "tensorboard")


class _Empty(types.ModuleType):
    __path__: list = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in place of what md4 imports for reading data and writing summaries only, where not installed."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def main() -> None:
    p = parser()
    p.add_argument("--md4", required=True, help="a checkout of md4")
    p.add_argument("--mlp_type", default="swiglu", help="md4's published files say glu (a sigmoid gate)")
    options = p.parse_args()
    reply = prepare(options)
    sys.path.insert(0, options.md4)
    import distrax  # noqa: F401  (both before the stand-ins: they look for tensorflow too)
    import tensorflow_probability.substrates.jax  # noqa: F401

    absent = [name for name in DATA_ONLY if importlib.util.find_spec(name) is None]
    sys.meta_path.append(StandIns(absent))
    import flax.jax_utils
    import jax
    import jax.numpy as jnp
    import optax
    from md4 import train
    from md4.configs.md4 import openwebtext

    if 4 * options.d_model * 2 // 3 > options.d_ff or options.d_ff - 4 * options.d_model * 2 // 3 >= 32:
        raise ValueError(f"d_ff={options.d_ff}: md4's width follows from d_model, the multiple of 32 above 8/3 of it")
    config = openwebtext.get_config()
    config.update(
        vocab_size=options.vocab, data_shape=(options.length,), n_layers=options.layers, num_heads=options.heads,
        feature_dim=options.d_model // options.heads, mlp_type=options.mlp_type, time_features="none",
        ema_rate=options.ema, batch_size=options.rows,
    )
    rate = functools.partial(
        train.get_learning_rate, base_learning_rate=config.learning_rate, num_steps=config.num_train_steps,
        warmup_steps=config.warmup_steps, schedule_type=config.learning_rate_schedule,
    )
    model, optimizer, state, metrics_class = train.create_train_state(
        config, jax.random.key(0) if config.seed is None else jax.random.PRNGKey(config.seed),
        (options.rows, options.length), rate,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    run_step = jax.pmap(  # as its train_and_evaluate does
        functools.partial(
            train.train_step, model=model, optimizer=optimizer, train_metrics_class=metrics_class,
            learning_rate_fn=rate, ema_rate=config.ema_rate, num_microbatches=config.num_microbatches,
        ),
        axis_name="batch", donate_argnums=(0,),
    )
    held = {"state": flax.jax_utils.replicate(state)}
    del state
    tokens = jnp.asarray(token_rows(options), jnp.int32)
    batch = {"text": tokens[None]}

    @jax.jit
    def logits(params, tokens):
        return model.apply({"params": params}, tokens, jnp.float32(0.5), method=model.predict_x)[0]

    def forward() -> float:
        if "params" not in held:
            held["params"] = flax.jax_utils.unreplicate(held["state"].params)
        return float(logits(held["params"], tokens)[0, 0, 0])

    def step() -> float:
        held["state"], metrics = run_step(train_state=held["state"], batch=batch)
        jax.block_until_ready(held["state"])
        return float(flax.jax_utils.unreplicate(metrics).compute()["loss"])

    about = {
        "parameters": parameters,
        "versions": f"jax {jax.__version__}, optax {optax.__version__}",
        "contains": f"md4.train.train_step under pmap: continuous-time NELBO, gradient, no clip (clip={config.clip}), "
                    f"AdamW, {'EMA' if config.ema_rate else 'no EMA'}, metrics; mlp {options.mlp_type}; "
                    f"stand-ins for {', '.join(absent) or 'nothing'}",
    }
    serve(options, reply, about, {"forward": forward, "step": step})


if __name__ == "__main__":
    main()
