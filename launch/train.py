"""Trains a diffusion language model: ``python -m launch.train --config=configs/quickstart.py --workdir=DIR``.

Everything that can be wrong with the command, the configuration, the files and the workdir is found here, before jax
is imported; launch/run_train.py does the work.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig, parse_mesh, to_dict
from mdlm_jax.config.objectives import check_columns, check_training
from mdlm_jax.data.languages.registry import make
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.models.shapes import parameter_count
from mdlm_jax.planning.estimate import check_rows
from mdlm_jax.planning.work import model_flops

from . import _cli, _configs, _distributed, _help
from ._data import check_data
from ._start import brings_tokenizer, check_start, length_notes, named_tokenizer, stored_tokenizer, twin_network
from ._workdir import check_workdir

FLAGS = (
    _cli.Flag("config", "FILE", "the recipe: a Python file with get_config(), or the name of one that comes with the "
              "package (below); FILE:ARGUMENT hands ARGUMENT to get_config, as in smdm:170. Required."),
    _cli.Flag("workdir", "DIR", "the folder that receives checkpoints, metrics, samples and pictures. Made if it does "
              "not exist; the same command again resumes the run in it. gs://BUCKET/NAME too. Required.", written=True),
    _cli.Flag("dry_run", "", "check everything but the text itself, print the resolved configuration as JSON and stop; "
              "--workdir may be left out", bool),
    _distributed.FLAG,
    _cli.Flag("profile", "FIRST:LAST", "trace these steps into WORKDIR/profile, for TensorBoard's profiler"),
)

_HELP = """\
Trains a diffusion language model, measures it on held-out text, samples from it and draws both.

usage: {program} --config=FILE --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

{flags}

configs of the package
{shipped}

configuration fields, with the defaults of the library (a config file may set others)

{fields}

names that fields take

{names}

SIGTERM saves the step under way and leaves with exit status 143; the same command goes on from there.

An existing workdir resumes its run. The configuration must be the same, but train.steps may grow, and the sections
eval, sample and log, the mesh, microbatches, remat, attention backend and the keeping of checkpoints may change. A run
that has saved no checkpoint yet makes room for any other.

examples
  {program} --config=quickstart --workdir=runs/first
  {program} --config=quickstart --workdir=runs/mixed --config.process.mixing=0.1
  {program} --config=quickstart --workdir=runs/mine --config.data.source=book.txt --config.train.steps=500
  {program} --config=quickstart --config.data.tokenizer=bpe:4096 --dry_run

exit status: 0 done, 2 something in the command or its files is wrong, 130 interrupted, 143 asked to stop and saved
"""


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS, config=True)
    if arguments.help:
        print(_HELP.format(program=_help.program("train"), flags=_help.flag_lines(FLAGS), names=_help.name_lines(),
                           shipped=_help.shipped_lines(), fields=_help.config_lines()), end="")
        return None
    flags = arguments.flags
    dry_run = flags.get("dry_run", False)
    recipe = _cli.require(flags, "config", "quickstart", "the recipe to train")
    config = _configs.load(recipe, arguments.overrides)
    workdir = None
    if "workdir" in flags or not dry_run:
        workdir = check_workdir(_cli.require(flags, "workdir", "runs/first", "the folder for the results"), config)
    how = _distributed.asked(flags, "train")
    check_rows(config, parse_mesh(config.train.mesh))
    try:
        check_training(config)
        check_data(config.data, config.train.batch_size, config.model.classes)
        if config.train.init_from:
            check_start(config)
        _check_columns(config)
    except ConfigError:
        if dry_run and config.model.vocab_size:  # the text may be on another machine
            print(_size(config, config.model.vocab_size), file=sys.stderr)
        raise
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log.wandb=True: needs the package wandb; pip install 'mdlm_jax[wandb]', or leave it out")
    if dry_run:
        print(json.dumps(to_dict(config), indent=2), flush=True)
        print(*(f"note     {note}" for note in length_notes(config)), _verdict(config), sep="\n", file=sys.stderr)
        return None
    profile = _steps(flags["profile"], config.train.steps) if "profile" in flags else None
    assert workdir is not None  # only a dry run goes without
    return lambda: _train(config, workdir, how, profile)


def _verdict(config: RunConfig) -> str:
    """The last line of a dry run; parameters and FLOPs only where the vocabulary is known by now."""
    ids, about = _ids(config)
    return f"all right: {_size(config, config.model.vocab_size or ids, about)}"


def _ids(config: RunConfig) -> tuple[int, str]:
    """How many ids the tokenizer has, 0 where only the data tell, and "at most " where it is yet to be trained."""
    spec, named = config.data.tokenizer, config.train.init_from and stored_tokenizer(config.train.init_from)
    if named:
        return named.vocab_size, ""
    if spec.startswith("bpe:"):
        return int(spec.removeprefix("bpe:")), "at most "
    return (0 if brings_tokenizer(config) else named_tokenizer(spec).vocab_size), ""


def _check_columns(config: RunConfig) -> None:
    """ConfigError where edits have no columns of the head, as far as the tokenizer is known by now."""
    source, (ids, about) = config.data.source, _ids(config)
    if source.startswith("language:"):
        ids = LanguageTokenizer(make(source.removeprefix("language:")).vocab_size).vocab_size
    columns = config.model.head_size or config.model.vocab_size
    if ids and not (about and columns):
        check_columns(config.train.objective, ids, columns or ids)


def _size(config: RunConfig, ids: int, about: str = "") -> str:
    """Parameters, tokens and training FLOPs, counted as the trainer does; the tokens alone without ``ids``.

    Where train.mesh leaves the number of devices open one is taken; it decides at most whether pairs fit on each.
    """
    train, length = config.train, config.data.length
    tokens = f"{train.steps * train.batch_size * length:,} tokens in {train.steps:,} steps"
    if not ids:
        return tokens
    network, sizes = config.model.transformer(ids), parse_mesh(train.mesh)
    flops = train.steps * model_flops(config, network, {axis: max(size, 1) for axis, size in sizes.items()},
                                      twin_network(config, ids))
    return f"{about}{parameter_count(network):,} parameters, {tokens}, {about}{flops:.2e} FLOPs"


def _steps(text: str, steps: int) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= steps):
        raise ConfigError(f"--profile={text}: write FIRST:LAST, steps from 1 to train.steps={steps}, as in 20:25")
    return int(first), int(last)


def _train(config: RunConfig, workdir: Path, how: str | None, profile: tuple[int, int] | None) -> None:
    _distributed.join(how)
    from . import run_train

    with _distributed.leaving_at_once():
        run_train.main(config, workdir, profile)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-train``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
