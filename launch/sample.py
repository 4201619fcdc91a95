"""Samples from a model: ``python -m launch.sample --checkpoint=DIR --prompt="def "``, or for a file of prompts.

The flags, the checkpoint and the prompts are checked here, before jax is imported; launch/run_sample.py and
launch/run_answers.py do the work.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError, RunConfig, SampleConfig, parse_mesh
from mdlm_jax.config.evaluation import NEW_TOKENS
from mdlm_jax.config.objectives import in_blocks
from mdlm_jax.data.tokenizers import Tokenizer, load_tokenizer
from mdlm_jax.generation.answer_file import Answers, Prompt, told_of
from mdlm_jax.models.hf import families
from mdlm_jax.sampling import registry
from mdlm_jax.training import checkpoints, places
from mdlm_jax.training.checkpoints import find

from . import _cli, _decoders, _distributed, _images, _sample_flags
from ._prompts import encoded, read_prompts
from ._workdir import read_config

FLAGS = (*_sample_flags.FLAGS, *_decoders.flags())
_RUN_NUMBERS = ("num", "steps", "temperature", "top_p", "top_k", "guidance", "seed")
_PASSED_ON = ("block_length", "cache", "grid", "special", "max_length", "batch_size")  # to LanguageModel.generate
_WITH_PROMPTS = ("prompt_field", "batch_size", "distributed")
_WITHOUT_PROMPTS = ("prompt", "length", "picture", "live", "label", "labels")


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """A checked command line.

    Attributes:
      folder: a step folder whose files have been found whole, or a Hugging Face directory.
      config: the configuration of the run; None for a Hugging Face directory.
      sample: num, steps and how a token is drawn, of the run's own sampler.
      length: tokens a sample, prompt included; 0 with ``prompts``.
      prompt: "" for none.
      output: file for the text, or None.
      picture: .html or .png file, or None.
      new_tokens: tokens a sample, prompt not included.
      prompts: of a file, or None.
      generate: further keywords of `LanguageModel.generate`.
      load: keywords of `mdlm_jax.load`. ``mesh``: sizes by axis, or None.
      twin: folder of the step of an autoregressive run, or None.
      live: show it as it happens. ``distributed``: how to find the other processes, or None.
    """

    folder: Path
    config: RunConfig | None
    sample: SampleConfig
    length: int
    prompt: str = ""
    output: Path | None = None
    picture: Path | None = None
    new_tokens: int = 0
    prompts: tuple[Prompt, ...] | None = None
    generate: dict[str, Any] = dataclasses.field(default_factory=dict)
    load: dict[str, Any] = dataclasses.field(default_factory=dict)
    mesh: dict[str, int] | None = None
    twin: Path | None = None
    live: bool = False
    distributed: str | None = None


@dataclasses.dataclass(frozen=True)
class _Model:
    """What is known of a model before its weights are read."""

    folder: Path
    config: RunConfig | None
    tokenizer: Tokenizer | None
    family: str
    attention: str
    made_for: int  # positions; 0: not said


def read_options(flags: dict) -> SampleOptions:
    """Checks what can be checked without the weights.

    Raises:
      ConfigError: no checkpoint there, a number out of range, flags that exclude each other, prompts that do not fit, a
        file that cannot be written.
    """
    several = "prompts" in flags
    for name in _WITHOUT_PROMPTS if several else _WITH_PROMPTS:
        if name in flags:
            remedy = "does not go with --prompts; leave it out" if several else "needs --prompts"
            raise ConfigError(f"--{name}={flags[name]}: {remedy}")
    if "length" in flags and "new_tokens" in flags:
        raise ConfigError("--length, --new_tokens: say the same with and without the prompt; give one of them")
    model = _model(_cli.require(flags, "checkpoint", "runs/first", "the trained model"))
    labels = _images.asked(flags, model.config)
    sample = _sample_config(flags, model, labels)
    prompts = tuple(read_prompts(flags["prompts"], flags.get("prompt_field", "prompt"))) if several else None
    counts = _token_counts(flags, model, prompts)
    new_tokens, length = _lengths(flags, model, counts)
    if labels is None or model.config is None:
        _check_guidance(sample.guidance, min(counts), model.config)
    else:
        _images.check_guidance(sample.guidance, model.config)
    picture = _writable("picture", flags.get("picture"))
    if picture and picture.suffix not in (".html", ".png"):
        raise ConfigError(f"--picture={picture}: the name must end in .html or .png")
    if several:
        _cli.require(flags, "output", "answers.jsonl", "the file for the answers")
    if flags.get("live") and not sys.stdout.isatty():
        raise ConfigError("--live: the output is not a terminal; leave it out, or use --picture")
    mesh, load = _loading(flags)
    generate = _generate(flags, model, sample, new_tokens)
    if labels is not None:
        generate["label"] = [labels[i % len(labels)] for i in range(sample.num)]
    if length:
        generate.setdefault("max_length", max(length, model.made_for))
        if length > model.made_for > 0:
            print(f"note     {length} tokens are more than the {model.made_for} that the model was made for",
                  file=sys.stderr, flush=True)
    output = _writable("output", flags.get("output"))
    _images.check_output(output, model.config, length)
    return SampleOptions(
        model.folder, model.config, sample, length, flags.get("prompt", ""), output, picture, new_tokens,
        prompts, generate, load, mesh, _twin(flags), flags.get("live", False),
        _distributed.asked(flags, "answer prompts") if several else None,
    )


def find_checkpoint(text: str) -> Path:
    """The step folder that ``--checkpoint=text`` means, every digest checked: itself, or the newest whole one in it."""
    try:
        return find(text)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None


def _twin(flags: dict) -> Path | None:
    """The step folder that ``--twin`` means, every digest checked."""
    if "twin" not in flags:
        return None
    if flags.get("decoder") != "copula":
        raise ConfigError(f"--twin={flags['twin']}: goes with --decoder=copula; give both, or neither")
    try:
        return find(flags["twin"])
    except ConfigError as error:
        raise ConfigError(f"--twin: must be a run of train.objective=autoregressive; {error}") from None


def _model(text: str) -> _Model:
    place = places.place(text)
    if not places.in_bucket(text) and families.is_hf(place):
        described = families.describe(place)
        return _Model(place, None, _tokenizer(place), described.family, described.config.attention,
                      described.max_length)
    folder = find_checkpoint(text)
    config = read_config(folder / "config.json")
    meta = checkpoints.read_meta(folder) if (folder / checkpoints.META).exists() else {}
    if meta.get("family"):
        return _Model(folder, None, _tokenizer(folder), meta["family"], config.model.attention, meta["max_length"])
    return _Model(folder, config, load_tokenizer(folder / "tokenizer.json"), "", config.model.attention,
                  meta.get("max_length") or config.data.length)


def _tokenizer(folder: Path) -> Tokenizer | None:
    return load_tokenizer(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None


def _sample_config(flags: dict, model: _Model, labels: list[int] | None) -> SampleConfig:
    own = SampleConfig() if model.config is None else model.config.sample
    if "labels" in flags:
        assert labels is not None  # the flag was read
        own = dataclasses.replace(own, num=len(labels))
    given = {name: flags[name] for name in _RUN_NUMBERS if name in flags}
    try:
        return dataclasses.replace(own, **({"num": 1} if "prompts" in flags else {}) | given)
    except ConfigError as error:
        raise ConfigError(f"--{str(error).removeprefix('sample.')}") from None


def _token_counts(flags: dict, model: _Model, prompts: tuple[Prompt, ...] | None) -> list[int]:
    """Tokens of every prompt."""
    special = flags.get("special", False)
    if prompts is None:
        return [len(encoded("--prompt", flags.get("prompt", ""), model.tokenizer, special))]
    return [len(encoded(f"--prompts, prompt {one.index}", one.prompt, model.tokenizer, special)) for one in prompts]


def _lengths(flags: dict, model: _Model, counts: list[int]) -> tuple[int, int]:
    """New tokens of a sample, and all of its tokens (0 for prompts of several lengths)."""
    longest, most = max(counts), flags.get("max_length", model.made_for)
    room = most - longest if most else NEW_TOKENS
    new_tokens = flags.get("new_tokens", min(NEW_TOKENS, room))
    for name in ("new_tokens", "max_length"):
        if flags.get(name, 1) < 1:
            raise ConfigError(f"--{name}={flags[name]}: must be at least 1")
    if "prompts" in flags:
        if new_tokens < 1 or most and new_tokens > room:
            lower = "lower --new_tokens, " if room > 0 else ""
            raise ConfigError(f"--prompts: prompt {counts.index(longest)} is {longest} tokens long, which leaves "
                              f"{max(room, 0)} of the {most} positions; shorten it, {lower}or raise --max_length")
        return new_tokens, 0
    length = model.made_for if model.config is not None else longest + max(new_tokens, 0)
    length = flags.get("length", longest + flags["new_tokens"] if "new_tokens" in flags else length)
    if length < 2:
        raise ConfigError(f"--length={length}: must be at least 2")
    if longest >= length:
        raise ConfigError(f"--prompt is {longest} tokens long: must be shorter than --length={length}")
    return length - longest, length


def _check_guidance(guidance: float, prompt_tokens: int, config: RunConfig | None) -> None:
    if guidance and not prompt_tokens:
        raise ConfigError(f"--guidance={guidance}: guides towards a prompt; give a --prompt, or leave it out")
    if config is None or not guidance:
        return
    objective = config.train.objective
    kind = objective.partition(":")[0]
    if kind in ("autoregressive", "any_order", "any_subset") or in_blocks(kind, config.model.attention):
        raise ConfigError(f"--guidance={guidance}: masks the prompt, which a network of train.objective={objective} "
                          "reads as text; leave it out")
    if config.process.mixing == 1:
        raise ConfigError(f"--guidance={guidance}: masks the prompt, and a model with process.mixing=1 knows no masks; "
                          "leave it out")


def _generate(flags: dict, model: _Model, sample: SampleConfig, new_tokens: int) -> dict[str, Any]:
    """Keywords of `LanguageModel.generate`."""
    decoder = flags.get("decoder", registry.usual(model.family, model.attention).decoder)
    numbers, own = _decoders.numbers(flags, decoder), None if "decoder" in flags else model.config
    if own:
        numbers = {name: getattr(sample, name) for name in _decoders.EVERYWHERE} | numbers
    found = {name: flags[name] for name in (*_PASSED_ON, "decoder") if name in flags} | numbers
    if own and model.attention in ("bidirectional", "block_causal"):
        size = own.model.block_length if model.attention == "block_causal" else 0
        size = flags.get("block_length") or size
        blocks = -(-new_tokens // size) if size else 1
        exact = "steps" in flags and model.attention == "bidirectional"
        found["steps"] = sample.steps if exact else -(-sample.steps // blocks) * blocks
    elif "steps" in flags and not own:
        found["steps"] = flags["steps"]
    ends = flags.get("end", model.config is None or "prompts" in flags)
    found |= {"guidance": sample.guidance, "seed": sample.seed, "stop_id": "eos" if ends else None}
    return found | ({"stop": _stops(flags["stop"], model)} if "stop" in flags else {})


def _stops(text: str, model: _Model) -> list[str]:
    if model.tokenizer is None:
        raise ConfigError("--stop: looks for text, and the checkpoint has no tokenizer.json; leave it out")
    if not text.startswith("["):
        return [text]
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(x, str) and x for x in found):
        raise ConfigError(f"--stop={text}: a list is written as JSON, as in " + """'["\\n\\n", "def "]'""")
    return found


def _loading(flags: dict) -> tuple[dict[str, int] | None, dict[str, Any]]:
    """Sizes of the mesh, and keywords of `mdlm_jax.load`."""
    if flags.get("dtype") not in (None, "float32", "bfloat16"):
        raise ConfigError(f"--dtype={flags['dtype']}: choose float32 or bfloat16")
    return parsed_mesh(flags), {name: flags[name] for name in ("dtype", "mask_id") if name in flags}


def parsed_mesh(flags: dict) -> dict[str, int] | None:
    """What ``--mesh`` says, sizes by axis; None where it is not given. ConfigError for what is no mesh."""
    try:
        return parse_mesh(flags["mesh"]) if "mesh" in flags else None
    except ConfigError as error:
        raise ConfigError(str(error).replace("train.mesh", "--mesh")) from None


def _writable(flag: str, text: str | None) -> Path | None:
    if text is None:
        return None
    path = Path(text).expanduser()
    if not text or path.is_dir():
        raise ConfigError(f"--{flag}={text}: is not a file name")
    if not path.parent.is_dir():
        raise ConfigError(f"--{flag}={text}: there is no folder {path.parent}; make it, or choose another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--{flag}={text}: no permission to write there; choose another file")
    return path


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_sample_flags.text(), end="")
        return None
    options = read_options(arguments.flags)
    if options.prompts is not None:
        answers = job(options)
        answers.check()
    return lambda: _sample(options)


def _sample(options: SampleOptions) -> None:
    if options.prompts is None:
        from . import run_sample

        run_sample.main(options)
        return
    number, count = _distributed.place(options.distributed)
    from . import run_answers

    with _distributed.leaving_at_once():
        run_answers.main(options, job(options, number, count))
        _distributed.part()


def job(options: SampleOptions, number: int = 0, count: int = 1) -> Answers:
    """What the command answers: everything that decides an answer, and nothing else."""
    assert options.prompts is not None and options.output is not None
    says = told_of(options.prompts) | {
        "num": options.sample.num, "checkpoint": str(options.folder), "new_tokens": options.new_tokens,
        "dtype": options.load.get("dtype"), "mask_id": options.load.get("mask_id"),
        **({} if options.twin is None else {"twin": str(options.twin)}),
        **{name: value for name, value in sorted(options.generate.items()) if name != "batch_size"},
    }
    keys = [(one.index, sample) for one in options.prompts for sample in range(options.sample.num)]
    return Answers(options.output, says, keys, number, count, flag="--output")


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-sample``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
