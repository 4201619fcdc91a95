"""What launch.train does once everything is checked: data, model, training, measurement, samples, pictures."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax.config import ConfigError, RunConfig, TrainConfig, parse_mesh, to_dict
from mdlm_jax.config.train import beside, is_joint
from mdlm_jax.core.process import Process
from mdlm_jax.data import pipeline as data_pipeline
from mdlm_jax.data.tokenizers import load_tokenizer
from mdlm_jax.evaluation.likelihood import Bound, held_out_bound, held_out_rows, padded_batches
from mdlm_jax.models import api, joint
from mdlm_jax.models.config import TransformerConfig
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
from mdlm_jax.training.objectives.base import Objective
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
    train = config.train
    checkpoints = Checkpoints(kept, train.keep_checkpoints, train.keep_every, train.keep_best)
    made, notes = _made(config, checkpoints)
    _announce(made, notes)

    files = _settle(made, workdir, until_the_end)
    measure = _measure(made)
    trainer = Trainer(train, made.objective, made.data.train, made.mesh, workdir, checkpoints, files, config.eval.every,
                      _starting_weights(made), profile, push, _wandb(config, workdir))
    watched = held_out_rows(made.data.valid, config.eval.rows)
    with crash_report(workdir), enough_memory(_SMALLER):
        state = trainer.run(lambda params: _numbers(measure(params, watched)))
        _tell_best(train, checkpoints)
        params = averaged(state, train)
        print("measuring the held-out bound ...", flush=True)
        held_out = held_out_rows(made.data.valid, config.eval.final_rows)
        final = measure(params, held_out)
        without = {"joint": joint.silent(params["joint"])} if is_joint(train.objective) else {}
        references = {"the network without its layer": measure(params | without, held_out)} if without else {}
    params = _on_this_host(params)
    with enough_memory("lower sample.num"):
        if hosts.speaks():
            _report.finish(config, workdir, made.data, held_out, made.network, made.process, params, final, references,
                           {"parameters": made.parameters, "training": made.spent})
    hosts.barrier("report")


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a run is made of before its workdir is touched.

    Attributes:
      data: rows to train on and held out, with their tokenizer.
      twin: the shape of the network of train.twin, or None.
      parameters: how many are held and how many train.
    """

    config: RunConfig
    mesh: Mesh
    data: data_pipeline.Built
    process: Process
    network: TransformerConfig
    twin: TransformerConfig | None
    objective: Objective
    parameters: dict[str, int]

    @property
    def tokenizer(self):
        return self.data.tokenizer

    @property
    def shards(self) -> int:
        """Devices that share the rows of a batch."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def spent(self) -> dict[str, int]:
        """Tokens and model FLOPs of the whole run, those of its first objective throughout."""
        train, length = self.config.train, self.config.data.length
        return {"steps": train.steps, "tokens": train.steps * train.batch_size * length,
                "flops": train.steps * self.objective.train_flops(train.batch_size, length)}


def _made(config: RunConfig, checkpoints: Checkpoints) -> tuple[_Made, list[str]]:
    """Data, network and objective, alike on all hosts, and a line for the user about each choice that costs something.

    Raises:
      ConfigError: what only the devices or the text can tell.
    """
    mesh = make_mesh(parse_mesh(config.train.mesh))
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    check_batch(config, shards)
    data, given = _data(config, checkpoints)
    ids = data.tokenizer.vocab_size
    process, network = build_process(config, ids, data.tokenizer.mask_id), build_network(config, ids)
    twin = twin_network(config, ids)
    objective, notes = build_objective(config, network, process, shards, twin)
    parameters = _parameters(config, objective)
    notes += [*layout_notes(network, mesh), *_training_note(config, parameters), *length_notes(config),
              *_vocabulary_note(config, given, ids)]
    notes += [data.info["note"]] if "note" in data.info else []
    hosts.agree({"the configuration": json.dumps(to_dict(config)), "the training data": data.train.fingerprint,
                 "the held-out data": data.valid.fingerprint})
    return _Made(config, mesh, data, process, network, twin, objective, parameters), notes


def _data(config: RunConfig, checkpoints: Checkpoints):
    """What is trained on, with the tokenizer of the run's newest checkpoint where there is one, so that resuming does
    not train another; and the tokenizer that train.init_from brought to a fresh run, or None."""
    newest, train = checkpoints.newest(), config.train
    kept = None if newest is None else load_tokenizer(newest / "tokenizer.json")
    given = stored_tokenizer(train.init_from) if train.init_from and kept is None else None
    trains = train.init_from and config.data.tokenizer.startswith("bpe:")
    data = data_pipeline.build(config.data, train.batch_size, kept or (given if trains else None))
    agree(config, given, data.tokenizer)
    return data, given


def _measure(made: _Made) -> Callable[[dict, Mapping[str, np.ndarray]], Bound]:
    """The held-out bound of weights on rows."""
    config, tokenizer = made.config, made.tokenizer
    text = tokenizer.lossless and not beside(config.train.objective) and not config.data.answers
    token_bytes = tokenizer.token_bytes if text else np.zeros_like  # bytes of text, where the figure is of text
    bound = build_bound(config, made.network, made.process, made.shards, made.twin)

    def measure(params: dict, held_out: Mapping[str, np.ndarray]) -> Bound:
        batches = padded_batches(held_out, -(-_EVAL_ROWS // made.shards) * made.shards)
        return held_out_bound(
            bound.loss_at, params, batches, token_bytes,
            draws=bound_draws(config, bound), end_terms=bound.end_terms, sharding=batch_sharding(made.mesh),
        )

    return measure


def _settle(made: _Made, workdir: Path, until_the_end: contextlib.ExitStack) -> dict[str, str]:
    """Makes the workdir this run's, at the last moment: a start that fails before leaves no trace.

    ConfigError where another process is at work in it.

    Returns:
      name -> content of the files that describe the run, for the process that writes them into checkpoints.
    """
    if hosts.speaks():
        workdir.mkdir(parents=True, exist_ok=True)
        until_the_end.enter_context(_lock.held(workdir))
        _write_description(made, workdir)
    hosts.barrier("workdir")
    if not hosts.speaks():
        return {}
    return {name: (workdir / name).read_text(encoding="utf-8") for name in ("tokenizer.json", "config.json", TWIN)
            if (workdir / name).exists()}


def _write_description(made: _Made, workdir: Path) -> None:
    earlier = set_aside(workdir, made.config)
    if earlier:
        print(f"note     {workdir} held another run without a checkpoint; its files are now in {earlier}", flush=True)
    made.tokenizer.save(workdir / "tokenizer.json")
    if made.twin is not None:
        write_atomically(workdir / TWIN, twin_file(made.twin))
    write_atomically(workdir / "config.json", json.dumps(to_dict(made.config), indent=2) + "\n")


def _starting_weights(made: _Made):
    if not made.config.train.init_from:
        return None
    from ._weights import starting_weights

    return lambda: starting_weights(made.config.train, made.network, made.twin, made.mesh)


def _wandb(config: RunConfig, workdir: Path) -> Callable[[], WandbRun] | None:
    return (lambda: WandbRun(config.log.project, workdir, to_dict(config))) if config.log.wandb else None


def _on_this_host(params: dict) -> dict:
    """The weights for the process that draws the samples."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params)


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


def _announce(made: _Made, notes: list[str]) -> None:
    config, info, network = made.config, made.data.info, made.network
    train, spent = info["train"], made.spent
    used = {axis: size for axis, size in made.mesh.shape.items() if size > 1} or "one device"
    print(f"data     {info['source']}: {train['tokens']:,} training tokens, vocabulary {network.vocab_size:,}")
    print(f"model    {api.num_parameters(network):,} parameters, {network.layers} layers, width {network.d_model}")
    print(f"run      {config.train.steps:,} steps of {config.train.batch_size} x {config.data.length} tokens = "
          f"{spent['tokens']:,} tokens, {spent['flops']:.2e} FLOPs, on {used}, jax {jax.__version__}")
    for note in notes:
        print(f"note     {note}")
    print(end="", flush=True)

