"""Measures a trained model: ``python -m launch.evaluate --checkpoint=DIR [--text=FILE,...] [--judge=...]``.

Likelihood of held-out and of other texts, as a true bound and by the published convention; samples at several step
counts with their cross-entropy under judges and their entropy. Flags and files are checked here, before jax is
imported; launch/run_evaluate.py does the work.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdlm_jax.config import DETOKENIZERS, ConfigError, RunConfig
from mdlm_jax.config.data import is_images
from mdlm_jax.data.tokenizers import LanguageTokenizer, load_tokenizer
from mdlm_jax.models.hf import families
from mdlm_jax.training import checkpoints, places

from . import _cli, _decoders, _help
from ._evaluation import NAME
from ._start import weights_digest
from ._workdir import read_config
from .sample import find_checkpoint, parsed_mesh

STEPS = (4, 8, 16, 32, 64, 128)  # unless told otherwise
LEFT_TO_RIGHT = ("causal", "permutation")  # networks that write one token after another
_OWN = (
    _cli.Flag("checkpoint", "DIR", "a run's workdir, its checkpoints folder (the newest whole step is taken), or one "
              "step in it. Required."),
    _cli.Flag("output", "FILE.json", f"the record, continued if it is there; default: {NAME} in the run's workdir"),
    _cli.Flag("rows", "N", "held-out rows, and rows of each --text, spread evenly over them; 0: no likelihood; "
              "default: the run's eval.final_rows", int),
    _cli.Flag("draws", "N", "noise draws a row; default: the run's eval.draws", int),
    _cli.Flag("held_out", "false", "leave the run's own held-out rows out: its data need not be there then", bool),
    _cli.Flag("text", "FILE,...", "measure the likelihood of these texts too (zero-shot): files, folders, .jsonl, "
              ".parquet"),
    _cli.Flag("detokenizer", "NAME", f"for the texts of this command; one of {', '.join(DETOKENIZERS)}; none unless "
              "given"),
    _cli.Flag("steps", "N,...", "step counts of the samples, which blocks share evenly; default "
              + ",".join(map(str, STEPS))),
    _cli.Flag("samples", "N", "samples at each step count; 0: none; 64 unless given", int),
    _cli.Flag("judge", "NAME,...", "who scores the samples: oracle (the exact law of a run's language), a run trained "
              "with train.objective=autoregressive, a Hugging Face directory of a causal model; default: oracle where "
              "there is one"),
    _cli.Flag("decoder", "NAME", "how samples are drawn (launch.sample --help lists them); default ancestral"),
    _cli.Flag("temperature", "T", "below 1 sharper, 0 greedy; default: the decoder's", float),
    _cli.Flag("top_p", "P", "draw from the likeliest tokens that hold this much probability", float),
    _cli.Flag("top_k", "K", "draw from the K likeliest tokens, 0 from all", int),
    _cli.Flag("seed", "N", "of noise and samples; 0 unless given", int),
    _cli.Flag("batch_size", "N", "samples at a time; 64 unless given", int),
    _cli.Flag("mesh", "SPEC", "share weights and rows among the devices here, as in fsdp:-1; default: one device"),
)
CHOICE = (
    _cli.Flag("task", "decoders", "measure settings of all decoders instead, and name the cheapest that is good "
              "enough, by the cross-entropy of samples under --judge or by right answers: to --validation, or rows "
              "that the run's oracle language can say, where it has others"),
    _cli.Flag("floor", "X", "what is good enough: at most X nats a token, or at least the share X of right answers; "
              "default, within two standard errors: what the model's usual decoder gives at one token a step, or the "
              "most right answers that any setting gets", float),
    _cli.Flag("least_entropy", "SHARE", "of the entropy of the held-out rows, which the samples must keep; 0.95 unless "
              "given", float),
    _cli.Flag("validation", "FILE.jsonl", "lines with prompt and completion: right is an answer that equals it"),
    _cli.Flag("only", "NAME,...", "the decoders to try; default: all. The usual one is measured too, at one token a "
              "step, for the floor"),
    _cli.Flag("by", "KIND", "what is cheap: work (rows of the network a token) or time; work unless given"),
    _cli.Flag("new_tokens", "N", "most of an answer to --validation; default: what its completions need", int),
    _cli.Flag("block_length", "N", "tokens written together; default: the model's way", int),
    _cli.Flag("cache", "NAME", "of all decoders, as of launch.sample; those that it does not suit are left out; "
              "default: the model's way"),
)
FLAGS = (*_OWN, *CHOICE, *_decoders.flags())

_HELP = """\
Measures a trained model and writes {name}: the likelihood of held-out text, and of texts it was not trained on, as a
true bound and by the published convention; and samples at several step counts, always with both their cross-entropy
under judges and their entropy.

usage: {program} --checkpoint=DIR [--text=FILE,...] [--judge=NAME,...] [--steps=N,...] [--samples=N] ...

{flags}
The numbers of decoders are flags too; launch.sample --help lists them.

{program} --checkpoint=DIR --task=decoders [--judge=NAME | --validation=FILE.jsonl] [--floor=X] [--only=NAME,...] ...

{choice}

The bound covers prior and reconstruction; exp of it bounds the perplexity from above. The published convention is the
mean of the continuous-time integrand over [1e-3, 1] (GIDD: [1e-4, 1 - 1e-4]), without them. The cross-entropy of
samples is that of the judge's tokens (a text in other tokens is encoded again); its exponential is the papers'
generative perplexity.

A command that was stopped goes on where it was; parts that are there with the same settings are not made again.
launch.tradeoff draws the records of several checkpoints.

examples
  {program} --checkpoint=runs/first --samples=0
  {program} --checkpoint=runs/hmm --steps=4,16,64
  {program} --checkpoint=runs/first --judge=runs/ar --text=other.txt,more/
  {program} --checkpoint=runs/hmm --task=decoders --samples=256
"""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """A checked command line.

    Attributes:
      folder: a whole step of a run; config: the run's.
      output: the record.
      rows, draws, texts, detokenizer: of the likelihood.
      held_out: whether the run's own rows are measured too.
      steps, samples, judges, generate: of the samples; () of steps: as many as it takes; the last are keywords of
        `LanguageModel.generate`.
      seed: of both. mesh: sizes by axis, or None.
    """

    folder: Path
    config: RunConfig
    output: Path
    rows: int
    draws: int
    texts: tuple[str, ...]
    steps: tuple[int, ...]
    samples: int
    judges: tuple[str, ...]
    generate: dict[str, Any]
    seed: int
    mesh: dict[str, int] | None = None
    detokenizer: str = ""
    held_out: bool = True


def read_options(flags: dict) -> EvaluateOptions:
    """Checks what can be checked without the weights.

    Raises:
      ConfigError: no run there, a number out of range, a text or a judge that is not there.
    """
    text = _cli.require(flags, "checkpoint", "runs/first", "the trained model")
    if not places.in_bucket(text) and families.is_hf(places.place(text)):
        raise ConfigError(f"--checkpoint={text}: is a Hugging Face directory, and what it was trained on is not known "
                          "here; turn it into a run with train.init_from, or use launch.sample")
    folder = find_checkpoint(text)
    config = read_config(folder / "config.json")
    if (folder / checkpoints.META).exists() and checkpoints.read_meta(folder).get("family"):
        raise ConfigError(f"--checkpoint={text}: is a converted checkpoint, without the data of a run; start a run "
                          "from it with train.init_from")
    for name, least in (("rows", 0), ("draws", 1), ("samples", 0), ("batch_size", 1), ("seed", 0)):
        if flags.get(name, least) < least:
            raise ConfigError(f"--{name}={flags[name]}: must be at least {least}")
    judges, texts, samples = _judges(flags, config, folder), _texts(flags, config), _samples(flags, config)
    rows = flags.get("rows", config.eval.final_rows)
    if not samples and not (rows and (texts or flags.get("held_out", True))):
        raise ConfigError("--rows, --samples: there is nothing to measure; give --rows of the held-out text or of a "
                          "--text, or --samples")
    return EvaluateOptions(
        folder, config, _output(flags, text, folder), rows, flags.get("draws", config.eval.draws), texts,
        _steps(flags, config), samples, judges, _generate(flags), flags.get("seed", 0), parsed_mesh(flags),
        _detokenizer(flags), flags.get("held_out", True),
    )


def _output(flags: dict, text: str, folder: Path) -> Path:
    if "output" not in flags and places.in_bucket(text):
        raise ConfigError(f"--output is missing: the record of a run in a bucket, as in --output={NAME}")
    path = Path(flags["output"]).expanduser() if "output" in flags else folder.parent.parent / NAME
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--output={path}: give a file in a folder that exists")
    return path


def _samples(flags: dict, config: RunConfig) -> int:
    if config.data.answers and flags.get("samples"):
        raise ConfigError(f"--samples={flags['samples']}: the run answers prompts, which samples here lack; leave it "
                          "at 0, and use launch.sample --prompts")
    return 0 if config.data.answers else flags.get("samples", 64)


def _texts(flags: dict, config: RunConfig) -> tuple[str, ...]:
    texts = _listed(flags, "text")
    if texts and (config.data.source.startswith("language:") or is_images(config.data.source)):
        raise ConfigError(f"--text={texts[0]}: the run's tokens are those of {config.data.source}, which stand for no "
                          "text; leave it out")
    for text in texts:
        if text == "held-out":
            raise ConfigError("--text=held-out: is the name of the run's own rows here; write ./held-out")
        if not text.startswith("tfds:") and not Path(text).expanduser().exists():
            raise ConfigError(f"--text={text}: there is no such file or folder; choose an existing one")
    return texts


def _detokenizer(flags: dict) -> str:
    name = flags.get("detokenizer", "")
    if name and name not in DETOKENIZERS:
        raise ConfigError(f"--detokenizer={name}: choose one of {', '.join(DETOKENIZERS)}")
    if name and not flags.get("text"):
        raise ConfigError(f"--detokenizer={name}: is for --text, and there is none; leave it out")
    return name


def _steps(flags: dict, config: RunConfig) -> tuple[int, ...]:
    """Ascending; () where the network or the decoder takes as many as it needs."""
    found = _listed(flags, "steps")
    if not all(one.isdigit() and int(one) > 0 for one in found):
        raise ConfigError(f"--steps={flags['steps']}: must be whole numbers of at least 1, as in 4,8,16")
    decoder, attention = flags.get("decoder", "ancestral"), config.model.attention
    if attention in LEFT_TO_RIGHT or not _decoders.entry(decoder).reads_steps:
        if found:
            what = f"a {attention} network" if attention in LEFT_TO_RIGHT else f"the decoder {decoder}"
            raise ConfigError(f"--steps={flags['steps']}: {what} takes as many as it needs; leave them out")
        return ()
    size = config.model.block_length if attention == "block_causal" else 0
    blocks = -(-config.data.length // size) if size else 1
    if found and any(int(count) % blocks for count in found):
        raise ConfigError(f"--steps={flags['steps']}: the rows have {blocks} blocks, which share them evenly; give "
                          f"multiples of {blocks}")
    return tuple(sorted(set(map(int, found)))) or tuple(blocks * count for count in STEPS if blocks == 1 or count <= 16)


def _judges(flags: dict, config: RunConfig, folder: Path) -> tuple[str, ...]:
    language = config.data.source.startswith("language:")
    judges = _listed(flags, "judge") or (("oracle",) if language else ())
    for judge in judges:
        if judge == "oracle" and not language:
            raise ConfigError(f"--judge=oracle: knows oracle languages alone, and the run's text is "
                              f"{config.data.source}; give a causal model's folder")
        if judge == "oracle" and config.data.source.startswith("language:drift"):
            raise ConfigError("--judge=oracle: the law of language:drift moves with time, and samples have none; give "
                              "a causal model's folder")
        if judge != "oracle":
            _check_judge(judge)
            _check_tokenizers(judge, folder)
    return judges


def _check_judge(judge: str) -> None:
    place = places.place(judge)
    if families.is_hf(place):
        attention = families.describe(place).config.attention
        if attention != "causal":
            raise ConfigError(f"--judge={judge}: its network is {attention}; a judge must be causal, whose likelihoods "
                              "are exact")
        return
    try:
        run = read_config(find_checkpoint(judge) / "config.json")
    except ConfigError as error:
        raise ConfigError(f"--judge={judge}: {error}") from None
    if run.train.objective != "autoregressive":
        raise ConfigError(f"--judge={judge}: was trained with train.objective={run.train.objective}; a judge must be "
                          "autoregressive, whose likelihoods are exact")
    if run.data.packing == "documents" or run.model.classes:
        what = "rows that end with their documents" if run.data.packing == "documents" else "rows with classes"
        raise ConfigError(f"--judge={judge}: was trained on {what}, which samples do not tell; give one trained on "
                          "plain rows")


def _check_tokenizers(judge: str, folder: Path) -> None:
    """Rows are scored as they are by a judge with the very same ids, else as text: ids of no text have none."""
    place = places.place(judge)
    files = folder / "tokenizer.json", (place if families.is_hf(place) else find_checkpoint(judge)) / "tokenizer.json"
    for file in files:
        if not file.is_file():
            raise ConfigError(f"--judge={judge}: {file} is missing, so that the samples' tokens cannot be turned into "
                              "the judge's; put it there")
    run, own = map(load_tokenizer, files)
    if not run.same_as(own) and (isinstance(run, LanguageTokenizer) or isinstance(own, LanguageTokenizer)):
        raise ConfigError(f"--judge={judge}: its tokens are others than the run's, and one of the two stand for no "
                          "text; give a judge of the same tokens")


def judge_digest(judge: str) -> str:
    """What tells one judge from another under the same name."""
    if judge == "oracle":
        return ""
    return weights_digest(judge)


def _generate(flags: dict) -> dict[str, Any]:
    decoder = flags.get("decoder", "ancestral")
    found = _decoders.numbers(flags, decoder) | {"batch_size": flags.get("batch_size", 64)}
    return found | ({"decoder": decoder} if "decoder" in flags else {})


def _listed(flags: dict, name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in flags.get(name, "").split(",") if part.strip())


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("evaluate"), flags=_help.flag_lines(_OWN),
                           choice=_help.flag_lines(CHOICE), name=NAME), end="")
        return None
    if "task" in arguments.flags:
        return _chooser(arguments.flags)
    if given := [flag.name for flag in CHOICE if flag.name in arguments.flags]:
        raise ConfigError(f"--{given[0]}={arguments.flags[given[0]]}: is read with --task=decoders only; leave it out")
    options = read_options(arguments.flags)
    return lambda: _evaluate(options)


def _chooser(flags: dict) -> Callable[[], None]:
    from . import _choice

    if flags["task"] != "decoders":
        raise ConfigError(f"--task={flags['task']}: choose decoders; launch.tasks asks for answers")
    options = _choice.read_options(flags)

    def choose() -> None:
        from . import run_choice

        run_choice.main(options)

    return choose


def _evaluate(options: EvaluateOptions) -> None:
    from . import run_evaluate

    run_evaluate.main(options)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-evaluate``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
