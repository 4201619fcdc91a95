"""Files of prompts: one a line of text, or one a JSON object. Never imports jax."""

import json
from pathlib import Path

from mdlm_jax.config import ConfigError
from mdlm_jax.generation.answer_file import Prompt, check_fields

_JSON = (".jsonl", ".ndjson", ".json")


def read_prompts(text: str, field: str) -> list[Prompt]:
    """The prompts of ``--prompts=text``; blank lines hold none.

    Raises:
      ConfigError: no such file, no prompts, a line that is no object with a string or token ids in ``field``, or one
        with a field of an answer.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise ConfigError(f"--prompts={text}: is not a file; give a text file, one prompt a line, or a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts={text}: cannot be read ({error}); give a file of UTF-8 text") from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"--prompts={text}: holds no prompts; write one a line")
    if path.suffix not in _JSON:
        return [Prompt(index, line, {"prompt": line}) for index, (_, line) in enumerate(numbered)]
    return [_object(index, f"--prompts={text}, line {number}", line, field)
            for index, (number, line) in enumerate(numbered)]


def _object(index: int, where: str, line: str, field: str) -> Prompt:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON ({error}); write one object a line") from None
    if not isinstance(found, dict) or field not in found:
        raise ConfigError(f"{where}: is no object with the field {field!r}; name another with --prompt_field")
    check_fields(where, found)
    prompt = found[field]
    if not isinstance(prompt, str) and not _is_tokens(prompt):
        raise ConfigError(f"{where}: {field!r} must be a string, or a list of token ids")
    return Prompt(index, prompt, found)


def _is_tokens(value) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) is int for x in value)


def encoded(where: str, prompt: str | list[int], tokenizer, special: bool) -> list[int]:
    """Token ids of a prompt; without a tokenizer its text is ids already.

    Raises:
      ConfigError: text that the tokenizer refuses, or that is no ids where there is none.
    """
    if not isinstance(prompt, str):
        return prompt
    try:
        if tokenizer is None:
            return [int(word) for word in prompt.split()]
        return (tokenizer.encode_special(prompt) if special else tokenizer.encode(prompt)).tolist()
    except ValueError as error:  # oracle languages have numbers for text
        none = "the checkpoint has no tokenizer.json; write token ids, as in '3 1 4'"
        raise ConfigError(f"{where}: {none if tokenizer is None else error}") from None
