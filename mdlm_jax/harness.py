"""The adapter to EleutherAI's lm-evaluation-harness (extra ``eval``): its model ``mdlm_jax``.

    import lm_eval, mdlm_jax.harness
    lm_eval.simple_evaluate("mdlm_jax", "checkpoint=LLaDA-8B-Base,draws=128", tasks=["arc_easy"])

A result depends on the request, the seed and the arguments, not on the batch it is in, nor on the other requests: the
randomness of a request belongs to a digest of its tokens. Where a task wants several answers to one request, each has
draws of its own: those of the n-th belong to the digest and n.
"""

import collections
import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax import loading
from mdlm_jax.errors import ConfigError
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.progress import Growing

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("mdlm_jax.harness needs lm-evaluation-harness: pip install 'mdlm_jax[eval]'") from error

_NEW_TOKENS = 256  # of an answer where the task does not say
_OF_THE_TASK = ("new_tokens", "stop", "row_ids", "special", "trace")  # options of `LanguageModel.generate`


@register_model("mdlm_jax")
class HarnessModel(LM):
    """A `LanguageModel` as the harness wants it.

    Args:
      checkpoint: what `mdlm_jax.load` takes; or ``model``: a loaded one.
      method, draws, error, guidance: of `LanguageModel.log_likelihood`; guidance of generation too.
      batch_size: rows at a time.
      max_length: positions a request may take, cut on the left; None: what the model was made for.
      seed: of masks and draws.
      mesh: as in fsdp:-1, to share weights and rows among the devices; "": one device.
      dtype, mask_id: of `mdlm_jax.load`.
      decoding: further keywords of `LanguageModel.generate`: decoder, steps (at most as many as new tokens),
        block_length, cache, ... A ``temperature`` is that of every request; otherwise a request that samples has its
        own (where it names none, the decoder's), and the others have 0.
    Raises:
      ConfigError: what the model would refuse of these, before its weights are read.
    """

    def __init__(self, checkpoint: str = "", model: LanguageModel | None = None, *, method: str = "bound",
                 draws: int | None = None, error: float | None = None, guidance: float = 0.0, batch_size: int = 32,
                 max_length: int | None = None, seed: int = 0, mesh: str = "", dtype: str | None = None,
                 mask_id: int | None = None, device: Any = None, max_batch_size: Any = None, **decoding):
        super().__init__()
        del device, max_batch_size  # the harness's own flags, which mean nothing here
        if bool(checkpoint) == (model is not None):
            raise ConfigError("checkpoint, model: give one of them")
        self.model = model or loading.without_weights(_found(checkpoint), mask_id=mask_id)
        if self.model.tokenizer is None:
            raise ConfigError(f"checkpoint={checkpoint}: holds no tokenizer.json, and the harness gives text; add it")
        self._measuring: dict[str, Any] = {"method": method, "draws": draws, "error": error}
        self._common: dict[str, Any] = {"guidance": guidance, "batch_size": _whole("batch_size", batch_size),
                                        "max_length": max_length}
        self._seed, self._decoding, self._checkpoint = seed, decoding, checkpoint
        self._check_measuring()
        self._check_decoding()
        self.max_length = max_length or self.model.description.max_length or 1 << 30
        self._template = _chat_template(Path(checkpoint)) if checkpoint else None
        self.model = model or _loaded(_found(checkpoint), mesh, dtype, mask_id)

    def _check_measuring(self) -> None:
        """Refuses arguments that `LanguageModel.log_likelihood` refuses, by asking it for none at all.

        Only those: a model that has no likelihood can still be asked for answers.
        """
        given = self._measuring | self._common | {"seed": self._seed}
        try:
            self.model.log_likelihood([], [], **given)
        except ConfigError as error:
            if str(error).partition("=")[0] in given:
                raise

    def _check_decoding(self) -> None:
        """Refuses what `LanguageModel.generate` refuses; `stream` does so before it computes anything."""
        for name in _OF_THE_TASK:
            if name in self._decoding:
                raise ConfigError(f"{name}={self._decoding[name]!r}: is for the task to say; leave it out")
        if not self._decoding and not self._common["guidance"]:
            return
        try:
            self.model.stream([self._before()], new_tokens=1, seed=self._seed, **self._common, **self._decoding)
        except ConfigError as error:
            said = str(error)
            if "there is no such option" in said and "did you mean" not in said:  # it knows not the names that are here
                own = (*self._measuring, *self._common, "checkpoint", "seed", "mesh", "dtype", "mask_id")
                close = difflib.get_close_matches(said.partition("=")[0], own, n=1)
                said += f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(said) from None

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each answer, and whether greedy decoding would write it."""
        pairs = [self._pair(*request.args) for request in requests]
        nats = self._measured(pairs, disable_tqdm)
        greedy = self.model.greedy_match([prompt for prompt, _ in pairs], [answer for _, answer in pairs],
                                         **self._common)
        return [(float(value), bool(hit)) for value, hit in zip(nats, greedy, strict=True)]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Windows as the harness cuts them: every token once, one token of context where the one before ends."""
        pairs, owner = [], []
        for number, request in enumerate(requests):
            ids = self.model.tokenizer.encode(request.args[0]).tolist()
            windows = get_rolling_token_windows(ids, self._before(), min(self.max_length, len(ids) + 1) - 1, 1)
            for context, answer in map(make_disjoint_window, windows):
                pairs.append((np.array(context, np.int32), np.array(answer, np.int32)))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, nats in zip(owner, self._measured(pairs, disable_tqdm), strict=True):
            totals[number] += float(nats)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers cut at the task's stop strings; equal requests are samples, and have different draws."""
        found: dict[int, str] = {}
        for key, chosen in _alike([request.args[1] for request in requests]).items():
            told = json.loads(key)
            new_tokens = told.get("max_gen_toks") or told.get("max_tokens") or _NEW_TOKENS
            until = [told["until"]] if isinstance(told.get("until"), str) else told.get("until", [])
            prompts = [self._encoded(requests[i].args[0])[-(self.max_length - new_tokens) :] for i in chosen]
            how = self._temperature(told) | self._decoding
            if how.get("steps") is not None:
                how["steps"] = min(how["steps"], new_tokens)
            answers = self.model.generate(
                prompts, new_tokens=new_tokens, stop=[text for text in until if text], seed=self._seed,
                row_ids=_row_ids(prompts), **self._common, **how)
            found |= {i: _cut(answer.text, until) for i, answer in zip(chosen, answers, strict=True)}
        return [found[i] for i in range(len(requests))]

    def _temperature(self, told: dict[str, Any]) -> dict[str, float]:
        """What a request says of it, read as the harness's own models do: without do_sample, above 0 means to sample.

        A decoder that is an object has its own.
        """
        if not isinstance(self._decoding.get("decoder"), str | None):
            return {}
        samples, wanted = told.get("do_sample"), told.get("temperature")
        if not (bool(wanted) if samples is None else samples):
            return {"temperature": 0.0}
        return {} if wanted is None else {"temperature": wanted}

    def _measured(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], quiet: bool) -> np.ndarray:
        """[N] nats of each pair of a prompt and an answer."""
        prompts, answers = ([pair[i] for pair in pairs] for i in (0, 1))
        ids = [_digest(np.concatenate([*pair, [len(pair[0])]])) for pair in pairs]
        with Growing("log-likelihoods", "forward", shown=not quiet) as progress:
            return self.model.log_likelihood(prompts, answers, seed=self._seed, row_ids=ids, progress=progress,
                                             **self._measuring, **self._common).nats

    def _pair(self, context: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """Both encoded as one text; spaces that end the context are the answer's (the harness's own rule)."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, answer = context[:-spaces], context[-spaces:] + answer
        first, whole = self._encoded(context), self._encoded(context + answer)
        prompt, ids = whole[: len(first)], whole[len(first) :]
        if not len(ids):
            raise ConfigError(f"answer {answer!r}: is no token of its own behind {context[-40:]!r}; choose a task "
                              "without such answers, or another tokenizer")
        if not len(prompt) and self._blind:
            prompt = np.array([self._before()], np.int32)
        return prompt[max(0, len(prompt) + len(ids) - self.max_length) :], ids[-self.max_length :]

    def _encoded(self, text: str) -> np.ndarray:
        tokenizer = self.model.tokenizer
        return tokenizer.encode_special(text) if self._template else tokenizer.encode(text)

    @property
    def _blind(self) -> bool:
        """Whether a first token cannot be scored without one before it."""
        config = self.model.config
        return config.logit_shift and (config.attention != "causal" or bool(self.model.description.family))

    def _before(self) -> int:
        tokenizer = self.model.tokenizer
        return tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if self._template is None:
            raise ConfigError(f"{self._checkpoint}: has no chat_template; put one into tokenizer_config.json or a "
                              ".jinja file")
        names = {f"{name}_token": _special_text(self.model.tokenizer, getattr(self.model.tokenizer, f"{name}_id"))
                 for name in ("bos", "eos", "pad")}
        return self._template.render(messages=chat_history, add_generation_prompt=add_generation_prompt, **names)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "" if self._template is None or not chat_template else self._template.filename or "given"

    @property
    def tokenizer_name(self) -> str:
        return self._checkpoint.replace("/", "__") or repr(self.model)


def _found(checkpoint: str) -> Path:
    """A Hugging Face directory, or the folder of a step."""
    from mdlm_jax.models.hf import families
    from mdlm_jax.training import checkpoints, places

    path = places.place(checkpoint)
    return path if families.is_hf(path) else checkpoints.find(path)


def _loaded(folder: Path, mesh: str, dtype: str | None, mask_id: int | None) -> LanguageModel:
    import jax

    from mdlm_jax.config import parse_mesh
    from mdlm_jax.models.sharding import make_mesh

    made = make_mesh(parse_mesh(mesh), jax.local_devices()) if mesh else None
    return loading.load(folder, mesh=made, dtype=dtype, mask_id=mask_id)


def _whole(name: str, value: Any) -> int:
    """A number that the harness may give as a string."""
    if not str(value).isdecimal():
        raise ConfigError(f"{name}={value!r}: must be a whole number; there is no automatic one")
    return int(value)


def _alike(told: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    """Requests by what they ask for."""
    found: dict[str, list[int]] = {}
    for number, one in enumerate(told):
        found.setdefault(json.dumps(one, sort_keys=True), []).append(number)
    return found


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.partition(stop)[0]
    return text


def _digest(ids: np.ndarray) -> int:
    """32 bits of what was asked."""
    return int.from_bytes(hashlib.sha256(np.asarray(ids, "<i4").tobytes()).digest()[:4], "little")


def _row_ids(prompts: Sequence[np.ndarray]) -> list[int]:
    """A digest of each prompt and of how many equal ones are before it."""
    seen: collections.Counter[bytes] = collections.Counter()
    found = []
    for prompt in prompts:
        before = seen[prompt.tobytes()]
        found.append(_digest(np.append(prompt, -before) if before else prompt))  # no id is negative
        seen[prompt.tobytes()] += 1
    return found


def _special_text(tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else next((name for name, i in tokenizer.special.items() if i == token_id), "")


def _chat_template(folder: Path):
    """The Jinja template of a Hugging Face directory, compiled; None where there is none."""
    config = folder / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if (folder / "chat_template.jinja").is_file():
        found = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(found, list):  # several, by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    if found is None:
        return None
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(found)
