"""What a training step costs on TPUs that are not here: ``python -m launch.plan --config=FILE --topology=v5e:16x16``.

The step is compiled ahead of time by the real XLA:TPU, which libtpu brings along; no TPU is needed. This file checks
the command without jax and sets the environment that libtpu reads; the work is done by `mdlm_jax.planning`.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.planning import topologies
from mdlm_jax.planning.decoding import Decoding, default_mesh
from mdlm_jax.planning.topologies import GENERATIONS, Topology

from . import _cli, _configs, _help

FLAGS = (
    _cli.Flag("config", "FILE", "the recipe: a Python file with get_config(), or the name of one that comes with the "
              "package (below). Required."),
    _cli.Flag("topology", "NAME", f"the slice, as in v5e:16x16; generations: {', '.join(GENERATIONS)}. Required."),
    _cli.Flag("num_slices", "N", "slices of that size, joined by the data-center network; 1 unless given", int),
    _cli.Flag("step", "KIND", "train | decode: a training step (unless given), or one forward of decoding"),
    _cli.Flag("rows", "N", "of a decoding step: rows; one a device unless given", int),
    _cli.Flag("slots", "N", "of a decoding step: slots of each row's cache; data.length unless given", int),
    _cli.Flag("window", "N", "of a decoding step: tokens of each row that pass through; 32 unless given", int),
    _cli.Flag("json", "FILE", "also write the numbers, and the largest collectives, here"),
)

_HELP = """\
Compiles a training or decoding step for TPUs that are not here, and prints what it costs on one of them: memory,
FLOPs, bytes between chips, each against the least there could be, and the time below which no step can stay.

usage: {program} --config=FILE --topology=NAME [--num_slices=N] [--step=decode] [--json=FILE]
       [--config.SECTION.FIELD=VALUE ...]

{flags}

The mesh is that of the topology (to train replica x fsdp, to decode replica x expert or tensor) unless
--config.train.mesh is given on the command line. A decoding step holds the weights in model.dtype. Needs
libtpu: pip install 'mdlm_jax[tpu]'. Compiling takes minutes on a small machine.

configs of the package
{shipped}

examples
  {program} --config=llada_8b --topology=v5e:16x16
  {program} --config=llada_8b --topology=v5p:8x8x8 --config.model.remat=none
  {program} --config=llada_8b --topology=v5e:16x16 --num_slices=2 --config.train.batch_size=512 --json=plan.json
  {program} --config=llada_8b --topology=v5e:2x4 --step=decode --rows=16 --config.model.backend=xla

exit status: 0 fits, 1 does not fit, 2 something in the command or its files is wrong, 130 interrupted
"""

# Read by libtpu when it loads. The pair of accelerator type and hostnames keeps it from asking a metadata server.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def _prepare(argv: list[str], outcome: dict) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS, config=True)
    if arguments.help:
        print(_HELP.format(program=_help.program("plan"), flags=_help.flag_lines(FLAGS),
                           shipped=_help.shipped_lines()), end="")
        return None
    flags = arguments.flags
    recipe = _cli.require(flags, "config", "llada_8b", "the recipe to plan for")
    name = _cli.require(flags, "topology", "v5e:16x16", "the slice to plan for")
    topology = topologies.parse(name, flags.get("num_slices", 1))
    config = _configs.load(recipe, arguments.overrides)
    decoding = _decoding(flags, config, topology)
    default = default_mesh(topology, config.model.transformer(config.model.vocab_size)) if decoding else None
    sizes = topologies.mesh_sizes(topology, arguments.overrides.get("train.mesh"), default)
    if decoding:
        decoding.check(sizes)
    if "json" in flags and not Path(flags["json"]).absolute().parent.is_dir():
        raise ConfigError(f"--json={flags['json']}: its folder does not exist; make it first")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={name}: compiling for TPU needs libtpu; pip install 'mdlm_jax[tpu]'")
    return lambda: outcome.update(_plan(config, topology, sizes, decoding, flags.get("json")))


def _decoding(flags: dict, config: RunConfig, topology: Topology) -> Decoding | None:
    kind = flags.get("step", "train")
    if kind not in ("train", "decode"):
        raise ConfigError(f"--step={kind}: choose train or decode")
    given = [name for name in ("rows", "slots", "window") if name in flags]
    if kind == "train" and given:
        raise ConfigError(f"--{given[0]}={flags[given[0]]}: of a decoding step; add --step=decode, or leave it out")
    if kind == "train":
        return None
    rows, slots = flags.get("rows", topology.devices), flags.get("slots", config.data.length)
    return Decoding(rows, slots, flags.get("window", 32))


def _plan(config: RunConfig, topology: Topology, sizes: dict[str, int], decoding: Decoding | None,
          json_file: str | None) -> dict:
    os.environ.update(ENVIRONMENT)
    from mdlm_jax.planning import measure, report

    if decoding:
        found = measure.decoding_plan(config, topology, sizes, decoding)
    else:
        found = measure.plan(config, topology, sizes)
    print(report.text(found), end="", flush=True)
    if json_file:
        Path(json_file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-plan``; returns the exit status."""
    outcome: dict = {}
    status = _cli.run(lambda argv: _prepare(argv, outcome), argv)
    return status or int(not outcome.get("fits", True))


if __name__ == "__main__":
    sys.exit(main())
