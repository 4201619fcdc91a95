"""Conversations as pairs of a prompt and an answer, in the templates of chat models.

Every answer of the assistant makes one pair: the prompt is what was said before it, each turn between its head and its
end, and the head of the answer; the answer's own end is learnt with it (LLaDA, arXiv 2502.09992, takes the turns of a
conversation apart in the same way). Heads and ends may name special tokens of the tokenizer; what people say may not:
it is text, whatever it looks like.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.tokenizers import Tokenizer

_MARKER = re.compile(r"<\|[^|]+\|>")  # what a tokenizer made for a template has as one token; <role> may be text
Piece = tuple[str, bool]  # a text, and whether the names of special tokens in it stand for those


@dataclasses.dataclass(frozen=True)
class Template:
    """``begin`` stands before everything; ``head``, with the role in it, before a turn, ``end`` behind it.

    Attributes:
      strip: whether white space around what is said is left out.
      roles: names of roles, where they are not those of the conversation.
    """

    begin: str
    head: str
    end: str
    strip: bool = False
    roles: tuple[tuple[str, str], ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Names in it that are to be special tokens."""
        return tuple(dict.fromkeys(_MARKER.findall(self.begin + self.head + self.end)))

    def header(self, role: str) -> str:
        return self.head.format(role=dict(self.roles).get(role, role))

    def said(self, content: str) -> str:
        return content.strip() if self.strip else content


_HEADERS = "<|start_header_id|>{role}<|end_header_id|>\n\n"
TEMPLATES = {
    "chatml": Template("", "<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama3": Template("<|begin_of_text|>", _HEADERS, "<|eot_id|>", strip=True),
    "llada": Template("<|startoftext|>", _HEADERS, "<|eot_id|>", strip=True),
    "llada2": Template("", "<role>{role}</role>", "<|role_end|>",
                       roles=(("system", "SYSTEM"), ("user", "HUMAN"), ("assistant", "ASSISTANT"))),
    "plain": Template("", "{role}: ", "\n"),
}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A prompt in pieces, the assistant's answer, and what ends it."""

    prompt: tuple[Piece, ...]
    answer: str
    end: str


def exchanges(messages: Sequence[Mapping[str, Any]], template: str, where: str) -> Iterator[Exchange]:
    """One for every answer of the assistant.

    Raises:
      ConfigError: naming ``where``: no list of {role, content}, or no answer in it.
    """
    made, found = TEMPLATES[template], 0
    before: list[Piece] = []
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ConfigError(f"{where}: must be a list of objects with role and content")
    pieces: list[Piece] = [(made.begin, True)] if made.begin else []
    for turn in messages:
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(f"{where}: a turn has role {role!r} and content of type {type(content).__name__}; both "
                              "must be strings")
        head, content = (made.header(role), True), made.said(content)
        if role == "assistant":
            found += 1
            yield Exchange((*pieces, *before, head), content, made.end)
        before += [head, (content, False), (made.end, True)]
    if not found:
        raise ConfigError(f"{where}: nobody answers; a turn must have the role assistant")


def encoded(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of each piece, as it stands behind those before it."""
    (text, named), *rest = pieces
    return [tokenizer.encode_special(text) if named else tokenizer.encode(text),
            *(tokenizer.encode_next(piece, named) for piece, named in rest)]


def prompt(messages: Sequence[Mapping[str, Any]], template: str, tokenizer: Tokenizer) -> np.ndarray:
    """A conversation up to the head of the answer that comes next, ids [n] for `LanguageModel.generate`.

    Args:
      messages: {role, content} each, the last one the user's.
      template: a name of `TEMPLATES`.
    Raises:
      ConfigError: another template, or turns that are no such objects.
    Examples:
      >>> from mdlm_jax.data.tokenizers import ByteTokenizer
      >>> ByteTokenizer().decode(prompt([{"role": "user", "content": "Hi"}], "plain", ByteTokenizer()))
      'user: Hi\\nassistant: '
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template={template!r}: choose one of {', '.join(TEMPLATES)}")
    *_, last = exchanges([*messages, {"role": "assistant", "content": ""}], template, "messages")
    return np.concatenate(encoded(last.prompt, tokenizer)).astype(np.int32)


def spelled_out(template: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The template's markers that the tokenizer has no token for: they are written as ordinary text."""
    absent = (name for name in TEMPLATES[template].markers if name not in tokenizer.special)
    return tuple(name for name in absent
                 if [tokenizer.token_text(i) for i in tokenizer.encode_special(name)] != [name])


def check_markers(template: str, tokenizer: Tokenizer, spec: str) -> str:
    """A note where markers are spelled out in the tokens of a run that trained its own, which knows none; else "".

    Args:
      spec: ``data.tokenizer``.
    Raises:
      ConfigError: the tokenizer was not made for this template.
    """
    absent = spelled_out(template, tokenizer)
    if not absent:
        return ""
    said = f"data.chat_template={template!r}: data.tokenizer={spec!r} has no token for {', '.join(absent)}"
    if spec.startswith("bpe:"):
        return f"{said}; each is written as ordinary text, which costs tokens and can be said by anybody"
    raise ConfigError(f"{said}, and would spell out each as ordinary text; choose a tokenizer.json that has them, or "
                      "data.chat_template=plain")
