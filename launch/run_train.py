"""What launch.train does once everything is checked: data, model, training, measurement, samples, pictures."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from mdlm_jax.config import ConfigError, RunConfig, TrainConfig, parse_mesh, to_dict
from mdlm_jax.config.train import beside
from mdlm_jax.data import pipeline as data_pipeline
from mdlm_jax.data.tokenizers import load_tokenizer
from mdlm_jax.evaluation.likelihood import Bound, held_out_bound, held_out_rows, padded_batches
from mdlm_jax.models import api
from mdlm_jax.models.sharding import BATCH_AXES, batch_sharding, make_mesh
from mdlm_jax.training import adapters, hosts
from mdlm_jax.training.beside import TWIN, twin_file
from mdlm_jax.training.build import (
    bound_draws,
    build_bound,
    build_network,
    build_objective,
    build_process,
    check_batch,
    layout_notes,
)
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.manifest import write_atomically
from mdlm_jax.training.optimizers import trainable_parameters
from mdlm_jax.training.trainer import Trainer, averaged
from mdlm_jax.training.wandb_run import WandbRun

from . import _lock, _report
from ._crash import crash_report
from ._memory import enough_memory, keep_freed_memory
from ._mirror import mirrored
from ._start import agree, length_notes, stored_tokenizer, twin_network
from ._workdir import set_aside

_EVAL_ROWS = 16  # rows measured at a time
_SMALLER = "lower train.batch_size, raise train.microbatches, set model.remat=full or lower train.head_budget"


def main(config: RunConfig, workdir: Path, profile: tuple[int, int] | None = None) -> None:
    """Trains (or resumes) and leaves the workdir complete. The last line printed is the held-out bound.

    ``workdir``: a folder, or a place in a bucket.
    """
    with mirrored(workdir) as (folder, push), contextlib.ExitStack() as until_the_end:
        _train(config, folder, workdir / "checkpoints", push, profile, until_the_end)


def _train(config: RunConfig, workdir: Path, kept: Path, push: Callable[[], None] | None, profile,
           until_the_end: contextlib.ExitStack) -> None:
    """``kept``: where the checkpoints go; ``push``: called before each of them is whole."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if config.model.backend == "cudnn" and jax.default_backend() != "gpu":
        raise ConfigError(f"model.backend='cudnn': runs on NVIDIA GPUs, not on a {jax.default_backend()}; choose xla")
    mesh = make_mesh(parse_mesh(config.train.mesh))
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    check_batch(config, shards)
    train = config.train
    checkpoints = Checkpoints(kept, train.keep_checkpoints, train.keep_every, train.keep_best)
    kept_tokenizer, given = _stored_tokenizer(checkpoints), None
    if train.init_from and kept_tokenizer is None:
        given = stored_tokenizer(train.init_from)
    trains = train.init_from and config.data.tokenizer.startswith("bpe:")
    built = data_pipeline.build(config.data, train.batch_size, kept_tokenizer or (given if trains else None))
    tokenizer = built.tokenizer
    agree(config, given, tokenizer)
    process = build_process(config, tokenizer.vocab_size, tokenizer.mask_id)
    network = build_network(config, tokenizer.vocab_size)
    twin = twin_network(config, tokenizer.vocab_size)
    objective, notes = build_objective(config, network, process, shards, twin)
    notes += layout_notes(network, mesh)
    parameters = _parameters(config, objective)
    notes += _training_note(config, parameters)
    notes += length_notes(config)
    notes += _vocabulary_note(config, given, tokenizer.vocab_size)
    notes += [built.info["note"]] if "note" in built.info else []
    hosts.agree({"the configuration": json.dumps(to_dict(config)), "the training data": built.train.fingerprint,
                 "the held-out data": built.valid.fingerprint})
    _announce(config, built.info, network, objective, mesh, notes)

    files = _settle(config, workdir, tokenizer, twin, until_the_end)
    text = tokenizer.lossless and not beside(train.objective) and not config.data.answers
    token_bytes = tokenizer.token_bytes if text else np.zeros_like  # bytes of text, where the figure is of text
    bound = build_bound(config, network, process, shards, twin)

    def measure(params: dict, held_out: Mapping[str, np.ndarray]) -> Bound:
        batches = padded_batches(held_out, -(-_EVAL_ROWS // shards) * shards)
        return held_out_bound(
            bound.loss_at, params, batches, token_bytes,
            draws=bound_draws(config, bound), end_terms=bound.end_terms, sharding=batch_sharding(mesh),
        )

    trainer = Trainer(config.train, objective, built.train, mesh, workdir, checkpoints, files, config.eval.every,
                      _starting_weights(config, network, twin, mesh), profile, push, _wandb(config, workdir))
    watched = held_out_rows(built.valid, config.eval.rows)
    with crash_report(workdir), enough_memory(_SMALLER):
        state = trainer.run(lambda params: _numbers(measure(params, watched)))
        _tell_best(train, checkpoints)
        params = averaged(state, config.train)
        print("measuring the held-out bound ...", flush=True)
        held_out = held_out_rows(built.valid, config.eval.final_rows)
        final = measure(params, held_out)
    params = _on_this_host(params)
    with enough_memory("lower sample.num"):
        if hosts.speaks():
            _report.finish(config, workdir, built, held_out, network, process, params, final,
                           {"parameters": parameters, "training": _spent(config, objective)})
    hosts.barrier("report")


def _settle(config: RunConfig, workdir: Path, tokenizer, twin,
            until_the_end: contextlib.ExitStack) -> dict[str, str]:
    """Makes the workdir this run's, at the last moment: a start that fails before leaves no trace.

    ConfigError where another process is at work in it.

    Returns:
      name -> content of the files that describe the run, for the process that writes them into checkpoints.
    """
    if hosts.speaks():
        workdir.mkdir(parents=True, exist_ok=True)
        until_the_end.enter_context(_lock.held(workdir))
        _write_description(config, workdir, tokenizer, twin)
    hosts.barrier("workdir")
    if not hosts.speaks():
        return {}
    return {name: (workdir / name).read_text(encoding="utf-8") for name in ("tokenizer.json", "config.json", TWIN)
            if (workdir / name).exists()}


def _write_description(config: RunConfig, workdir: Path, tokenizer, twin) -> None:
    earlier = set_aside(workdir, config)
    if earlier:
        print(f"note     {workdir} held another run without a checkpoint; its files are now in {earlier}", flush=True)
    tokenizer.save(workdir / "tokenizer.json")
    if twin is not None:
        write_atomically(workdir / TWIN, twin_file(twin))
    write_atomically(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")


def _starting_weights(config: RunConfig, network, twin, mesh):
    if not config.train.init_from:
        return None
    from ._weights import starting_weights

    return lambda: starting_weights(config.train, network, twin, mesh)


def _wandb(config: RunConfig, workdir: Path) -> Callable[[], WandbRun] | None:
    return (lambda: WandbRun(config.log.project, workdir, to_dict(config))) if config.log.wandb else None


def _on_this_host(params: dict) -> dict:
    """The weights for the process that draws the samples."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params)


def _stored_tokenizer(checkpoints: Checkpoints):
    """The tokenizer of the run's newest whole checkpoint, so that resuming does not train another."""
    newest = checkpoints.newest()
    return None if newest is None else load_tokenizer(newest / "tokenizer.json")


def _parameters(config: RunConfig, objective) -> dict[str, int]:
    """How many there are and how many train; finds, before anything is compiled, a pattern that fits nothing."""
    def weights():
        made, key = adapters.of(config.train), jax.random.key(0)
        return adapters.split(made, objective.network, objective.init(key), key)

    trainable, frozen = jax.eval_shape(weights)
    held = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((trainable, frozen)))
    return {"held": held, "trained": trainable_parameters(config.train, trainable)}


def _training_note(config: RunConfig, parameters: dict[str, int]) -> list[str]:
    train = config.train
    how = [f"train.{name}={getattr(train, name)}" for name in ("lora_rank", "freeze") if getattr(train, name)]
    counted = f"{parameters['trained']:,} of {parameters['held']:,} parameters train"
    return [f"{', '.join(how)}: {counted}"] if how else []


def _tell_best(train: TrainConfig, checkpoints: Checkpoints) -> None:
    best = checkpoints.best() if train.keep_best and hosts.speaks() else None
    if best:
        print(f"the best checkpoint kept, by the bound during training, is {best}")


def _vocabulary_note(config: RunConfig, given, vocab_size: int) -> list[str]:
    spec = config.data.tokenizer
    asked = spec.removeprefix("bpe:")
    if asked != spec and given is not None:
        return [f"data.tokenizer={spec}: no new one is trained; that of {config.train.init_from} is taken"]
    if asked == spec or int(asked) == vocab_size:
        return []
    return [f"data.tokenizer={spec}: the training text has pairs to merge for {vocab_size:,} tokens only"]


def _numbers(bound: Bound) -> Mapping[str, float]:
    numbers = {"eval/loss": bound.nats_per_token, "eval/loss_error": bound.nats_stderr}
    if bound.text_bytes:
        numbers["eval/bits_per_byte"] = bound.bits_per_byte
    return numbers | {f"eval/{name}": value for name, value in bound.terms.items()}


def _spent(config: RunConfig, objective) -> dict[str, int]:
    """Tokens and model FLOPs of the whole run, those of its first objective throughout."""
    train, length = config.train, config.data.length
    return {"steps": train.steps, "tokens": train.steps * train.batch_size * length,
            "flops": train.steps * objective.train_flops(train.batch_size, length)}


def _announce(config: RunConfig, info: dict, network, objective, mesh, notes: list[str]) -> None:
    train, spent = info["train"], _spent(config, objective)
    used = {axis: size for axis, size in mesh.shape.items() if size > 1} or "one device"
    print(f"data     {info['source']}: {train['tokens']:,} training tokens, vocabulary {network.vocab_size:,}")
    print(f"model    {api.num_parameters(network):,} parameters, {network.layers} layers, width {network.d_model}")
    print(f"run      {config.train.steps:,} steps of {config.train.batch_size} x {config.data.length} tokens = "
          f"{spent['tokens']:,} tokens, {spent['flops']:.2e} FLOPs, on {used}, jax {jax.__version__}")
    for note in notes:
        print(f"note     {note}")
    print(end="", flush=True)

