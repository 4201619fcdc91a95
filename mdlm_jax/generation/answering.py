"""Answers to many prompts in a file, each once, whatever is killed meanwhile: `LanguageModel.answer`."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.generation import code, generate
from mdlm_jax.generation import options as settings
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.answer_file import Answers, Key, Prompt, check_fields, read_lines, told_of
from mdlm_jax.generation.generate import Generation
from mdlm_jax.generation.options import Options, is_whole
from mdlm_jax.models.digest import digest
from mdlm_jax.progress import check, following
from mdlm_jax.sampling.decoder import Decoder

_OURS = {"row_ids": "the place of a prompt and the number of its sample are its row id",
         "trace": "the file keeps no canvases"}
_NOT_THE_LAW = ("batch_size", "row_ids", "trace", "twin")  # which changes no answer, or is told otherwise


def answer(model, prompts, output, *, new_tokens: int | None = None, num: int = 1,
           progress: bool | Callable[[int, int], None] = True, **keywords) -> list[dict[str, Any]]:
    """See `LanguageModel.answer`."""
    check(progress)
    for name, why in _OURS.items():
        if name in keywords:
            raise ConfigError(f"{name}={keywords[name]!r}: {why}; leave it out")
    if not is_whole(num) or num < 1:
        raise ConfigError(f"num={num!r}: must be a whole number of at least 1")
    _check_no_file(prompts)
    asked = _prompts(prompts)
    keywords = {name: list(value) if isinstance(value, Iterator) else value for name, value in keywords.items()}
    generate.answer_job(model, [one.prompt for one in asked], new_tokens, **keywords)  # refuses what it would
    output, keys = _output(output), [(one.index, sample) for one in asked for sample in range(num)]
    job = {"num": num, "new_tokens": new_tokens} | _says(model, asked, *settings.split(keywords))
    with Answers(output, job, keys) as answers:
        write(model, answers, answers.open(), asked, num=num, new_tokens=new_tokens, progress=progress, **keywords)
        answers.join()
    return read_lines(output)


def write(model, answers: Answers, left: Sequence[Key], prompts: Sequence[Prompt], *, num: int, new_tokens: int | None,
          progress: bool | Callable[[int, int], None], **keywords) -> None:
    """Answers what is ``left``, and adds each batch as it is done.

    Args:
      prompts: all of the job. num: samples of each.
      progress: of `progress.following`, for this process's share.
      keywords: of `LanguageModel.generate`, without ``row_ids``.
    """
    if not left:
        return
    places = [index for index, _ in left]
    label: Any = keywords.get("label")
    if np.ndim(label):
        keywords["label"] = np.asarray(label)[places]
    job = generate.answer_job(model, [prompts[index].prompt for index in places], new_tokens,
                              row_ids=[index * num + sample for index, sample in left], **keywords)
    share = len(answers.share())
    done = share - len(left)
    with following(progress, share, done, desc="answers", unit="answer") as show:
        for batch in generate.answer_batches(job):
            answers.add([_line(prompts[left[place][0]].fields, left[place], one) for place, one in batch])
            done += len(batch)
            show(done)


def _says(model, prompts: Sequence[Prompt], options: Options, numbers: dict[str, Any]) -> dict[str, Any]:
    """Everything else that decides an answer."""
    told = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    told = {name: value for name, value in told.items() if name not in _NOT_THE_LAW} | numbers
    written = [one._replace(prompt=one.fields["prompt"]) for one in prompts]
    return (told_of(written) | {"weights": _weights(model)}
            | ({} if options.twin is None else {"twin": _weights(options.twin)})
            | {name: _written(value) for name, value in sorted(told.items())}
            | _code(options.decoder))


def _code(decoder) -> dict[str, str]:
    """Digits of a decoder's class where it is no part of this library, whose code may change from call to call."""
    digits = code.digest(type(decoder)) if isinstance(decoder, Decoder) else ""
    return {"code": digits} if digits else {}


def _weights(model) -> str:
    """Digits of all that a model brings along."""
    learned = (model.params, model.schedule, model.joint, model.quality, model.fused, model.circuit)
    tokenizer = model.tokenizer
    names = None if tokenizer is None else (type(tokenizer).__name__, tokenizer.vocab_size)
    return hashlib.sha256(repr((digest(learned), model.description, model.process, names)).encode()).hexdigest()[:16]


def _written(value) -> Any:
    """An option as JSON holds it; decoders that are objects as their class and digits."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _written(one) for name, one in sorted(value.items())}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, Sequence):
        return [_written(one) for one in value]
    return f"{type(value).__name__} {digest(value)}"


def _check_no_file(prompts) -> None:
    """Refuses a string that names a file: it would be the one prompt."""
    try:
        named = isinstance(prompts, os.PathLike) or isinstance(prompts, str) and Path(prompts).is_file()
    except (OSError, ValueError):  # too long for a name, or no characters of one
        return
    if named:
        several = str(prompts).endswith((".jsonl", ".ndjson"))
        read = (f"[json.loads(line) for line in open({str(prompts)!r})]" if several
                else f"open({str(prompts)!r}).read().splitlines()")
        raise ConfigError(f"prompts={str(prompts)!r}: is a file, and no prompt; give what it holds, as {read} does, or "
                          "[prompts] where the name is meant")


def _prompts(prompts) -> list[Prompt]:
    """Strings, rows of ids, or objects that hold one of those as ``prompt``."""
    single = given.is_single(prompts) or isinstance(prompts, Mapping)
    several = [prompts] if single else given.listed("prompts", prompts)
    return [_prompt(index, one) for index, one in enumerate(several)]


def _prompt(index: int, one) -> Prompt:
    name, fields = f"prompts[{index}]", one if isinstance(one, Mapping) else {"prompt": one}
    if "prompt" not in fields:
        raise ConfigError(f"{name}: is a dict without 'prompt'; give the text, or token ids, under that name")
    check_fields(name, fields)
    prompt = fields["prompt"]
    try:
        shown = prompt if isinstance(prompt, str) else np.asarray(prompt).tolist()
        fields = json.loads(json.dumps({**fields, "prompt": shown}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be written as JSON ({error}); give strings, numbers and lists") from None
    return Prompt(index, prompt, fields)


def _output(output) -> Path:
    if not isinstance(output, (str, os.PathLike)):
        raise ConfigError(f"output={output!r}: must be the name of a file, such as 'answers.jsonl'")
    path = Path(output).expanduser()
    if path.is_dir():
        raise ConfigError(f"output={output}: is a folder; give a file in it, such as {path / 'answers.jsonl'}")
    if not path.parent.is_dir():
        raise ConfigError(f"output={output}: there is no folder {path.parent}; make it, or choose another file")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"output={output}: no permission to write there; choose another file")
    return path


def _line(fields: dict, key: Key, one: Generation) -> dict[str, Any]:
    found = {"index": key[0], "sample": key[1], "text": one.text, "finish": one.finish, "tokens": len(one.tokens),
             "forwards": one.forwards}
    if one.text is None:
        found["token_ids"] = one.tokens.tolist()
    return fields | found
