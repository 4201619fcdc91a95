"""The command line of ``launch.evaluate --task=decoders``, checked before jax is imported."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation import frontier
from mdlm_jax.evaluation.frontier import Setting
from mdlm_jax.sampling import registry

from . import evaluate
from ._prompts import Prompt, read_prompts

UNREAD = ("rows", "draws", "held_out", "text", "detokenizer", "steps", "decoder", "top_p", "top_k")
BY = ("work", "time")
_PROBES = 256  # rows at random that tell whether a language can say all
ENTROPY = 0.95  # of the held-out rows'


@dataclasses.dataclass(frozen=True)
class ChoiceOptions:
    """A checked command line.

    Attributes:
      evaluate: folder, config, output, samples, judges, seed and mesh, as of another evaluation.
      settings: that are measured; the first is what the floor goes by where none is given, and is ``tried``, as the
        others are, unless --only leaves it out.
      floor: quality to be reached, or None. ``entropy``: share of the held-out rows'. ``by``: one of `BY`.
      validation: prompts with their completions; () for none.
      new_tokens, block_length, cache: of the answers, or None.
      batch_size: rows at a time.
    """

    evaluate: evaluate.EvaluateOptions
    settings: tuple[Setting, ...]
    floor: float | None
    entropy: float
    by: str
    validation: tuple[Prompt, ...]
    new_tokens: int | None
    block_length: int | None
    cache: str | None
    batch_size: int
    tried: bool

    @property
    def figure(self) -> Path:
        return self.evaluate.output.with_name("decoders.png")

    @functools.cached_property
    def right(self) -> bool:
        """Whether answers are right or wrong."""
        return bool(self.validation) or choosy(self.evaluate.config)


def choosy(config) -> bool:
    """Whether the run's language has rows that it cannot say, so that a row is right or wrong."""
    if not config.data.source.startswith("language:"):
        return False
    from mdlm_jax.data.languages.drift import DriftStream

    language = make(config.data.source.removeprefix("language:"))
    if isinstance(language, DriftStream):  # it moves with time
        return False
    rows = np.random.default_rng(0).integers(language.vocab_size, size=(_PROBES, config.data.length))
    return bool(np.isneginf(language.log_prob(rows)).any())


def read_options(flags: dict) -> ChoiceOptions:
    """Checks what can be checked without the weights.

    Raises:
      ConfigError: a flag that is not read here, no judge and no right answers, an unknown decoder, a number out of
        range, a file of pairs that is none; what `evaluate.read_options` refuses.
    """
    has = {name for entry in registry.entries().values() for name in entry.numbers} - {"temperature"}
    if given := sorted(has.union(UNREAD) & set(flags)):
        raise ConfigError(f"--{given[0]}={flags[given[0]]}: every decoder is tried with numbers of its own; leave it "
                          "out, or measure one "
                          "setting without --task")
    passed = {name: value for name, value in flags.items() if name not in {flag.name for flag in evaluate.CHOICE}}
    validation = _validation(flags)
    if validation and "samples" in flags:
        raise ConfigError(f"--samples={flags['samples']}: --validation says how many answers there are; leave it out")
    told = evaluate.read_options(passed | {"rows": 1, "samples": 0 if validation else flags.get("samples", 64)})
    for name, least in (("new_tokens", 1), ("block_length", 0)):
        if flags.get(name, least) < least:
            raise ConfigError(f"--{name}={flags[name]}: must be at least {least}")
    by, entropy = flags.get("by", BY[0]), flags.get("least_entropy", ENTROPY)
    if by not in BY:
        raise ConfigError(f"--by={by}: choose one of {', '.join(BY)}")
    if not 0 <= entropy <= 1:
        raise ConfigError(f"--least_entropy={entropy}: must lie in [0, 1], a share")
    if not validation and "new_tokens" in flags:
        raise ConfigError(f"--new_tokens={flags['new_tokens']}: is read with --validation only; leave it out")
    settings, tried = _settings(flags, told.config, bool(validation))
    found = ChoiceOptions(told, settings, flags.get("floor"), entropy, by, validation, flags.get("new_tokens"),
                          flags.get("block_length"), flags.get("cache"), told.generate["batch_size"], tried)
    return _checked(found, flags)


def _checked(options: ChoiceOptions, flags: dict) -> ChoiceOptions:
    if not options.right and not options.evaluate.judges:
        raise ConfigError("--judge is missing: who says what the samples are worth; give a causal model's folder, or "
                          "right answers with --validation")
    if not options.right and len(options.evaluate.judges) > 1:
        raise ConfigError(f"--judge={flags['judge']}: the choice goes by one judge; give one")
    if options.right and ("least_entropy" in flags or "judge" in flags):
        name = "judge" if "judge" in flags else "least_entropy"
        raise ConfigError(f"--{name}={flags[name]}: answers are right or wrong here, and nothing else counts; leave it "
                          "out")
    if options.floor is not None and options.right and not 0 <= options.floor <= 1:
        raise ConfigError(f"--floor={options.floor:g}: must lie in [0, 1], a share of right answers")
    if not options.validation and options.evaluate.samples < 2:
        raise ConfigError(f"--samples={options.evaluate.samples}: must be at least 2, for their spread")
    return options


def _settings(flags: dict, config, validated: bool) -> tuple[tuple[Setting, ...], bool]:
    """The usual decoder at one token a step first, and whether it is tried; samples at temperature 1, answers at the
    decoders' own. Where nothing is given all greedy samples are one and the same, and are left out."""
    temperature = flags.get("temperature", None if validated else 1.0)
    alike = not validated and not _given(config)
    if alike and temperature == 0:
        raise ConfigError("--temperature=0: all samples would be one and the same; leave it out")
    names = [name.strip() for name in flags.get("only", "").split(",") if name.strip()]
    try:
        found = frontier.settings(names, temperature)
        usual = frontier.settings([registry.usual("", config.model.attention).decoder], temperature)[0]
    except ValueError as error:
        raise ConfigError(f"--only: {error}") from None
    size = flags.get("block_length") or (config.model.block_length if config.model.attention == "block_causal" else 0)
    found = [setting for setting in found if not (alike and setting.numbers.get("temperature") == 0)
             and not (size and setting.each > size)]
    usual, tried = dataclasses.replace(usual, plain="cache" in flags), usual in found
    return (usual, *(setting for setting in found if setting != usual)), tried and not usual.plain


def _given(config) -> int:
    """Tokens of a prompt that the run's language has."""
    name = config.data.source.removeprefix("language:")
    return 0 if name == config.data.source else getattr(make(name), "given", 0)


def _validation(flags: dict) -> tuple[Prompt, ...]:
    if "validation" not in flags:
        return ()
    path = Path(flags["validation"]).expanduser()
    if path.suffix != ".jsonl":
        raise ConfigError(f"--validation={path}: must be a .jsonl file of lines with prompt and completion")
    try:
        found = read_prompts(str(path), "prompt")
    except ConfigError as error:
        told = str(error).replace("--prompts=", "--validation=")
        raise ConfigError(told.replace("a text file, one prompt a line, or a .jsonl file",
                                       "a .jsonl file of lines with prompt and completion")) from None
    for prompt in found:
        if not isinstance(prompt.fields.get("completion"), str):
            raise ConfigError(f"--validation={path}: prompt {prompt.index} has no completion, give it one: "
                              f"{json.dumps(prompt.fields)[:80]}")
    return tuple(found)
