"""What a training step costs on accelerators that are not here: ``python -m launch.plan --config=FILE
--topology=v5e:16x16``.

A step for TPUs is compiled ahead of time by the real XLA:TPU, which libtpu brings along; no TPU is needed. Meshes are
searched, and GPUs judged, by arithmetic. This file checks the command without jax; launch/_planning.py does the work.
"""

import importlib.util
import sys
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.planning import estimate, topologies
from mdlm_jax.planning.chips import GPUS
from mdlm_jax.planning.decoding import CACHES, Blocks, Decoding, default_mesh
from mdlm_jax.planning.topologies import GENERATIONS, Topology

from . import _cli, _configs, _help
from ._planning import Task, run, run_caches

FLAGS = (
    _cli.Flag("config", "FILE", "the recipe: a Python file with get_config(), or the name of one that comes with the "
              "package (below). Required."),
    _cli.Flag("topology", "NAME", f"the slice, as in v5e:16x16 or, as the cloud calls it, v5p-512; generations: "
              f"{', '.join(GENERATIONS)}. Or GPUs of a node x nodes, by arithmetic alone, as in h100:8x16: "
              f"{', '.join(GPUS)}. Required."),
    _cli.Flag("num_slices", "N", "slices of that size, joined by the data-center network; 1 unless given", int),
    _cli.Flag("search", "", "try the meshes and microbatches that make sense by arithmetic, print the best, and "
              "compile the first --compile of them", bool),
    _cli.Flag("compile", "K", "how many meshes to compile; 0: arithmetic alone. 1 unless given (GPUs: 0)", int),
    _cli.Flag("tokens", "N", "budget that steps, days and chip-hours are told for, as in 2.3e12, 300B or 2.3T; "
              "train.steps x train.batch_size x data.length unless given", _cli.amount),
    _cli.Flag("efficiency", "SHARE", "share of the bound's speed to tell them for besides; 0.5 unless given", float),
    _cli.Flag("step", "KIND", "train | decode: a training step (unless given), or one forward of decoding"),
    _cli.Flag("rows", "N", "of a decoding step: rows; one a device unless given", int),
    _cli.Flag("cache", "NAMES", f"with --step=decode, in place of --topology: FLOPs that the sampling loop spends on a "
              f"generated token with each of these caches, compiled and by formula; {', '.join(CACHES)}, or all"),
    _cli.Flag("prompt", "N", "with --cache: tokens of the prompt; 768 unless given", int),
    _cli.Flag("new_tokens", "N", "with --cache: tokens to generate; 256 unless given", int),
    _cli.Flag("per_forward", "N", "with --cache: tokens that a forward reveals; 1 unless given", int),
    _cli.Flag("slots", "N", "of a decoding step: slots of each row's cache; data.length unless given", int),
    _cli.Flag("window", "N", "of a decoding step: tokens of each row that pass through; with --cache: of a block; 32 "
              "unless given", int),
    _cli.Flag("json", "FILE", "also write the numbers, and the largest collectives, here"),
    _cli.Flag("picture", "FILE.png", "also draw memory by kind against the chip's, and seconds by resource"),
)

_HELP = """\
Compiles a training or decoding step for TPUs that are not here, and prints what it costs on one of them: memory,
FLOPs, bytes between chips, each against the least there could be, and the time below which no step can stay; then
tokens a day, days and chip-hours to a budget. --search finds the mesh first.

usage: {program} --config=FILE --topology=NAME [--num_slices=N] [--search] [--compile=K] [--tokens=N]
       [--efficiency=SHARE] [--step=decode] [--json=FILE] [--picture=FILE.png] [--config.SECTION.FIELD=VALUE ...]
       {program} --config=FILE --step=decode --cache=NAMES [--prompt=N] [--new_tokens=N] [--window=N] [--per_forward=N]
       [--rows=N] [--json=FILE] [--config.SECTION.FIELD=VALUE ...]

{flags}

The mesh is that of the topology (to train replica x fsdp, to decode replica x expert or tensor) unless
--config.train.mesh is given on the command line. A decoding step holds the weights in model.dtype. Compiling needs
libtpu, pip install 'mdlm_jax[tpu]', and takes minutes on a small machine; arithmetic needs neither. By arithmetic the
state's memory and the least traffic are exact, the rest of the memory is an estimate.

configs of the package
{shipped}

examples
  {program} --config=llada_8b --topology=v5litepod-256
  {program} --config=llada_8b --topology=v5p-512 --tokens=300B --config.model.remat=none
  {program} --config=llada_8b --topology=v5e:16x16 --num_slices=2 --config.train.batch_size=512 --json=plan.json
  {program} --config=llada_8b --topology=v5e:2x4 --step=decode --rows=16 --config.model.backend=xla
  {program} --config=llada_8b --step=decode --cache=all
  {program} --config=smdm_1028m --topology=v6e:16x16 --search --compile=2 --picture=plan.png
  {program} --config=llada_8b --topology=h100:8x16 --search --tokens=2.3e12 --efficiency=0.4

exit status: 0 fits, 1 does not fit (with --search: nothing does), 2 something in the command or its files is wrong,
130 interrupted
"""


def _prepare(argv: list[str]) -> _cli.Work | None:
    arguments = _cli.parse(argv, FLAGS, config=True)
    if arguments.help:
        print(_HELP.format(program=_help.program("plan"), flags=_help.flag_lines(FLAGS),
                           shipped=_help.shipped_lines()), end="")
        return None
    flags = arguments.flags
    recipe = _cli.require(flags, "config", "llada_8b", "the recipe to plan for")
    if flags.keys() & {"cache", "prompt", "new_tokens", "per_forward"}:
        return _caches(flags, _configs.load(recipe, arguments.overrides))
    name = _cli.require(flags, "topology", "v5e:16x16", "the slice to plan for")
    topology = topologies.parse(name, flags.get("num_slices", 1))
    config = _configs.load(recipe, arguments.overrides)
    decoding = _decoding(flags, config, topology)
    default = default_mesh(topology, config.model.transformer(config.model.vocab_size)) if decoding else None
    mesh = arguments.overrides.get("train.mesh")
    sizes = topologies.mesh_sizes(topology, mesh, default)
    if decoding:
        decoding.check(sizes)
    searched = flags.get("search", False)
    if searched and mesh:
        raise ConfigError(f"--config.train.mesh={mesh}: --search chooses the mesh; leave one of them out")
    compiled = _compiles(flags, topology, searched, decoding)
    if not decoding and (searched or not compiled) and config.train.lora_rank:
        raise ConfigError(f"train.lora_rank={config.train.lora_rank}: arithmetic knows no adapters; compile one mesh, "
                          "without --search")
    if not decoding and not searched and not compiled:
        estimate.check_rows(config, sizes)
    if not decoding:
        estimate.network_of(config)
    _check_files(flags)
    if compiled and importlib.util.find_spec("libtpu") is None:
        remedy = "" if decoding else ", or add --compile=0 for arithmetic alone"
        raise ConfigError(f"--topology={name}: compiling for TPU needs libtpu; pip install 'mdlm_jax[tpu]'{remedy}")
    task = Task(config, topology, sizes, decoding, searched, compiled, flags.get("tokens"),
                flags.get("efficiency", 0.5), flags.get("json"), flags.get("picture"),
                "" if decoding or mesh else _other_mesh(config, topology, sizes))
    return lambda: int(not run(task))


def _other_mesh(config: RunConfig, topology: Topology, sizes: dict[str, int]) -> str:
    """What is to be said where the run, as its config is, would have another mesh than the one that is planned."""
    said = config.train.mesh
    try:
        if topologies.mesh_sizes(topology, said) == sizes:
            return ""
    except ConfigError:  # of other numbers of devices
        pass
    own = topologies.mesh_text(sizes)
    return (f"planned for the topology's own mesh; the config says train.mesh={said}. Give --config.train.mesh={own} "
            f"to the run, or --config.train.mesh={said} to this command")


def _decoding(flags: dict, config: RunConfig, topology: Topology) -> Decoding | None:
    kind = flags.get("step", "train")
    if kind not in ("train", "decode"):
        raise ConfigError(f"--step={kind}: choose train or decode")
    foreign = ("rows", "slots", "window") if kind == "train" else ("search", "tokens", "efficiency", "picture")
    step, remedy = ("decoding", "add --step=decode") if kind == "train" else ("training", "drop --step=decode")
    if given := [name for name in foreign if name in flags]:
        raise ConfigError(f"--{given[0]}={flags[given[0]]}: of a {step} step; {remedy}, or leave it out")
    if kind == "train":
        return None
    rows, slots = flags.get("rows", topology.devices), flags.get("slots", config.data.length)
    return Decoding(rows, slots, flags.get("window", 32))


def _caches(flags: dict, config: RunConfig) -> _cli.Work:
    """The work of --cache."""
    if "cache" not in flags:
        name = next(name for name in ("prompt", "new_tokens", "per_forward") if name in flags)
        raise ConfigError(f"--{name}={flags[name]}: goes with --cache; add it, or leave this out")
    if flags.get("step") != "decode":
        raise ConfigError(f"--cache={flags['cache']}: is of decoding; add --step=decode")
    own = ("config", "cache", "step", "rows", "prompt", "new_tokens", "window", "per_forward", "json")
    if foreign := [name for name in flags if name not in own]:
        raise ConfigError(f"--{foreign[0]}={flags[foreign[0]]}: --cache counts FLOPs, on any one device; leave it out")
    caches = CACHES if flags["cache"] == "all" else tuple(flags["cache"].split(","))
    if unknown := [name for name in caches if name not in CACHES]:
        raise ConfigError(f"--cache={unknown[0]}: choose of {', '.join(CACHES)}, or all")
    blocks = Blocks(flags.get("rows", 1), flags.get("prompt", 768), flags.get("new_tokens", 256),
                    flags.get("window", 32), flags.get("per_forward", 1))
    blocks.check()
    estimate.network_of(config)
    _check_files(flags)
    return lambda: run_caches(config, blocks, caches, flags.get("json"))


def _compiles(flags: dict, topology: Topology, searched: bool, decoding: Decoding | None) -> int:
    """How many meshes are compiled; ConfigError where that cannot be."""
    count = flags.get("compile", 0 if topology.gpu else 1)
    if count < 0:
        raise ConfigError(f"--compile={count}: must be at least 0")
    if topology.gpu and (count or decoding):
        asked = f"--compile={count}" if count else "--step=decode"
        raise ConfigError(f"{asked}: nothing is compiled for {topology.generation}, and only training is known by "
                          "arithmetic; leave it out")
    if decoding and count != 1:
        raise ConfigError(f"--compile={count}: a decoding step is always compiled, once; leave it out")
    if count > 1 and not searched:
        raise ConfigError(f"--compile={count}: without --search there is one mesh; add --search, or leave it out")
    return count


def _check_files(flags: dict) -> None:
    for name in ("json", "picture"):
        if name in flags and not Path(flags[name]).absolute().parent.is_dir():
            raise ConfigError(f"--{name}={flags[name]}: its folder does not exist; make it first")
    if not flags.get("picture", ".png").endswith(".png"):
        raise ConfigError(f"--picture={flags['picture']}: its name must end in .png")
    if flags.get("tokens", 1.0) <= 0:
        raise ConfigError(f"--tokens={flags['tokens']:g}: must be positive")
    if not 0 < flags.get("efficiency", 0.5) <= 1:
        raise ConfigError(f"--efficiency={flags['efficiency']:g}: must lie in (0, 1]")


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-plan``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
