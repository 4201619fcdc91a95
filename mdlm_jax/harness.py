"""The adapter to EleutherAI's lm-evaluation-harness (extra ``eval``): its model ``mdlm_jax``.

    import lm_eval, mdlm_jax.harness
    lm_eval.simple_evaluate("mdlm_jax", "checkpoint=LLaDA-8B-Base,draws=128", tasks=["arc_easy"])

A result depends on the request, the seed and the arguments, not on the batch it is in, nor on the other requests: the
randomness of a request belongs to a digest of its tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.training.progress import Growing

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("mdlm_jax.harness needs lm-evaluation-harness: pip install 'mdlm_jax[eval]'") from error

_NEW_TOKENS = 256  # of an answer where the task does not say


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
        block_length, cache, temperature, ...
    """

    def __init__(self, checkpoint: str = "", model: LanguageModel | None = None, *, method: str = "bound",
                 draws: int | None = None, error: float | None = None, guidance: float = 0.0, batch_size: int = 32,
                 max_length: int | None = None, seed: int = 0, mesh: str = "", dtype: str | None = None,
                 mask_id: int | None = None, device: Any = None, max_batch_size: Any = None, **decoding):
        super().__init__()
        del device, max_batch_size  # the harness's own flags, which mean nothing here
        if bool(checkpoint) == (model is not None):
            raise ConfigError("checkpoint, model: give one of them")
        self.model = model or _loaded(checkpoint, mesh, dtype, mask_id)
        if self.model.tokenizer is None:
            raise ConfigError(f"checkpoint={checkpoint}: holds no tokenizer.json, and the harness gives text")
        self._measuring = {"method": method, "draws": draws, "error": error}
        self._common = {"guidance": guidance, "batch_size": int(batch_size), "max_length": max_length}
        self._seed, self._decoding, self._checkpoint = seed, decoding, checkpoint
        self.max_length = max_length or self.model.description.max_length or 1 << 30
        self._template = _chat_template(Path(checkpoint)) if checkpoint else None

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [self._pair(*request.args) for request in requests]
        return self._scored(pairs, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Windows as the harness cuts them: every token once, one token of context where the one before ends."""
        pairs, owner = [], []
        for number, request in enumerate(requests):
            ids = self.model.tokenizer.encode(request.args[0]).tolist()
            windows = get_rolling_token_windows(ids, self._before(), min(self.max_length, len(ids) + 1) - 1, 1)
            for context, answer in map(make_disjoint_window, windows):
                pairs.append((np.array(context, np.int32), np.array(answer, np.int32)))
                owner.append(number)
        found, totals = self._scored(pairs, disable_tqdm), [0.0] * len(requests)
        for number, (nats, _) in zip(owner, found, strict=True):
            totals[number] += nats
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers cut at the task's stop strings. A task that samples brings its temperature."""
        found: dict[int, str] = {}
        for key, chosen in _alike([request.args[1] for request in requests]).items():
            told = json.loads(key)
            new_tokens = told.get("max_gen_toks") or told.get("max_tokens") or _NEW_TOKENS
            until = [told["until"]] if isinstance(told.get("until"), str) else told.get("until", [])
            prompts = [self._encoded(requests[i].args[0])[-(self.max_length - new_tokens) :] for i in chosen]
            how = dict(self._decoding)
            if told.get("do_sample") and "temperature" in told:
                how["temperature"] = told["temperature"]
            if "steps" in how:
                how["steps"] = min(how["steps"], new_tokens)
            answers = self.model.generate(
                prompts, new_tokens=new_tokens, stop=[text for text in until if text], seed=self._seed,
                row_ids=[_digest(prompt) for prompt in prompts], **self._common, **how)
            found |= {i: _cut(answer.text, until) for i, answer in zip(chosen, answers, strict=True)}
        return [found[i] for i in range(len(requests))]

    def _scored(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], quiet: bool) -> list[tuple[float, bool]]:
        prompts, answers = ([pair[i] for pair in pairs] for i in (0, 1))
        ids = [_digest(np.concatenate([*pair, [len(pair[0])]])) for pair in pairs]
        with Growing("log-likelihoods", "pass", shown=not quiet) as progress:
            found = self.model.log_likelihood(prompts, answers, seed=self._seed, row_ids=ids, progress=progress,
                                              **self._measuring, **self._common)
        greedy = self.model.greedy_match(prompts, answers, **self._common)
        return [(float(nats), bool(hit)) for nats, hit in zip(found.nats, greedy, strict=True)]

    def _pair(self, context: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """Both encoded as one text; spaces that end the context are the answer's (the harness's own rule)."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, answer = context[:-spaces], context[-spaces:] + answer
        first, whole = self._encoded(context), self._encoded(context + answer)
        prompt, ids = whole[: len(first)], whole[len(first) :]
        if not len(ids):
            raise ConfigError(f"the answer {answer!r} is no token of its own behind {context[-40:]!r}")
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
            raise ConfigError(f"{self._checkpoint}: has no chat_template, in tokenizer_config.json or a .jinja file")
        names = {f"{name}_token": _special_text(self.model.tokenizer, getattr(self.model.tokenizer, f"{name}_id"))
                 for name in ("bos", "eos", "pad")}
        return self._template.render(messages=chat_history, add_generation_prompt=add_generation_prompt, **names)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "" if self._template is None or not chat_template else self._template.filename or "given"

    @property
    def tokenizer_name(self) -> str:
        return self._checkpoint.replace("/", "__") or repr(self.model)


def _loaded(checkpoint: str, mesh: str, dtype: str | None, mask_id: int | None) -> LanguageModel:
    import jax

    from mdlm_jax.config import parse_mesh
    from mdlm_jax.loading import load
    from mdlm_jax.models.sharding import make_mesh

    made = make_mesh(parse_mesh(mesh), jax.local_devices()) if mesh else None
    return load(checkpoint, mesh=made, dtype=dtype, mask_id=mask_id)


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
