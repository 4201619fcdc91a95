"""Who says what generated rows cost: the exact law of an oracle language, or a causal model.

The figure is the cross-entropy of the samples under the judge, E_q[-log p(x)] in nats a token of the judge; its
exponential is what papers call generative perplexity. It falls when a sampler repeats itself, so it says nothing
without the entropy of the rows beside it (`quality`; arXiv 2409.02908).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.core.reduction import chunk_length, reduce
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser

_LOGITS = 1 << 22  # alive at once
_LENGTHS = 32  # longer texts are filled up to a multiple of it


class Scores(NamedTuple):
    """Of N rows: -log p in nats, and how many tokens of the judge that covers."""

    nats: np.ndarray
    tokens: np.ndarray


class Judge(Protocol):
    """Anything with a name that scores rows of the judged model's ids [N, L]."""

    @property
    def name(self) -> str: ...

    def score(self, rows: np.ndarray) -> Scores: ...


@dataclasses.dataclass(frozen=True)
class OracleJudge:
    """The exact law of the `data.languages` that the model was trained on, whose ids are the model's."""

    language: Any
    name: str = "oracle"

    def score(self, rows: np.ndarray) -> Scores:
        return Scores(-self.language.log_prob(rows), np.full(len(rows), rows.shape[1]))


@dataclasses.dataclass(frozen=True)
class CausalJudge:
    """An autoregressive model.

    Attributes:
      name: what it is called in tables.
      network: `CausalDenoiser`, which scores every token, or `Denoiser` of a published network, which scores a text
        behind ``before``, and without that all but its first token.
      params: its weights.
      ids: a row of the judged model's ids -> the judge's own: the text encoded again, or the same.
      most: tokens it can read; longer texts are cut there. 0: any.
      before: ids that a published network reads before a text, as its tokenizer's template has it.
    """

    name: str
    network: CausalDenoiser | Denoiser
    params: dict
    ids: Callable[[np.ndarray], np.ndarray]
    most: int = 0
    before: tuple[int, ...] = ()
    batch: int = 32

    def score(self, rows: np.ndarray) -> Scores:
        own = [np.concatenate([np.array(self.before, np.int32), self.ids(row)])[: self.most or None] for row in rows]
        length = max((len(ids) for ids in own), default=1)
        length = -(-max(length, 2) // _LENGTHS) * _LENGTHS if length > _LENGTHS else max(length, 2)  # few compilations
        learned = self.network.network.learned_positions
        length = min([length, *(most for most in (self.most, learned) if most)])
        nats, tokens = [], []
        for start in range(0, len(own), self.batch):
            piece = own[start : start + self.batch]
            filled, counts = np.zeros((self.batch, length), np.int32), np.zeros(self.batch, np.int32)
            for i, ids in enumerate(piece):
                filled[i, : len(ids)], counts[i] = ids, len(ids)
            found = np.asarray(_nats(self.network, self._skipped, self.params, filled, counts))
            nats.append(found[: len(piece)])
            tokens.append(np.maximum(counts[: len(piece)] - self._skipped, 0))
        return Scores(np.concatenate(nats).astype(np.float64), np.concatenate(tokens))

    @property
    def _skipped(self) -> int:
        return 0 if isinstance(self.network, CausalDenoiser) else max(len(self.before), 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nats(network, skipped: int, params, tokens, counts):
    """-log p of the first ``counts`` tokens of each row but ``skipped``, [B]; right padding is seen by none of them."""
    prediction = network(params, tokens)
    chunk = chunk_length(tokens.shape[0], prediction.num_columns, _LOGITS)
    ours = isinstance(network, CausalDenoiser)
    log_probs = reduce(prediction, suppress=network.start_id if ours else None, target=tokens, chunk=chunk).target
    index = jnp.arange(tokens.shape[1])
    counted = (index >= skipped) & (index < counts[:, None])
    return -jnp.where(counted, log_probs, 0.0).sum(-1)


def causal_judge(name: str, model, tokenizer) -> CausalJudge:
    """The judge that a `LanguageModel` makes of rows written in the ids of ``tokenizer``, a `data.tokenizers` or None.

    With the very same tokenizer the ids are scored as they are, else the text is encoded again, without the special
    tokens in it (so that documents in one row touch); before it stands what the tokenizer of a published model puts
    there, as Llama's does and GPT-2's does not.

    Raises:
      ConfigError: the model is not causal, or the ids cannot be turned into its own.
    """
    config: TransformerConfig = model.config
    if config.attention != "causal":
        raise ConfigError(f"judge {name}: its network is {config.attention}; a judge must be causal, whose "
                          "likelihoods are exact: give one trained with train.objective=autoregressive")
    if tokenizer is None or model.tokenizer is None:
        raise ConfigError(f"judge {name}: its tokenizer and the model's are not both known, so that one's ids cannot "
                          "be turned into the other's; put the tokenizer.json into both folders")
    if tokenizer.same_as(model.tokenizer):
        ids = _as_they_are
    else:
        def ids(row):
            return model.tokenizer.encode(tokenizer.decode(row))
    columns = config.head_size if model.tokenizer is None else min(config.head_size, model.tokenizer.vocab_size)
    if not model.description.family:
        network = CausalDenoiser(config, model.process.mask_id, columns)
        return CausalJudge(name, network, model.params, ids, model.description.max_length)
    before = () if model.tokenizer is None else tuple(model.tokenizer.leading.tolist())
    return CausalJudge(name, Denoiser(config, columns), model.params, ids, model.description.max_length, before)


def _as_they_are(row: np.ndarray) -> np.ndarray:
    return row


class Quality(NamedTuple):
    """Of generated rows, each a mean over rows and its standard error, in nats: of the token counts in a row the
    entropy, and by judge the cross-entropy a token."""

    entropy: tuple[float, float]
    cross_entropy: dict[str, tuple[float, float]]


def quality(rows: np.ndarray, vocab_size: int, judges: Sequence[Judge]) -> Quality:
    """Measures rows of ids [N, L]. The cross-entropy is a ratio of sums, its error by the delta method; NaN where a
    judge has no token to score."""
    entropy = unigram_entropy(rows, vocab_size)
    return Quality(_mean(entropy), {judge.name: _ratio(*judge.score(rows)) for judge in judges})


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _ratio(nats: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    total = tokens.sum()
    if not total:
        return float("nan"), float("nan")
    mean = nats.sum() / total
    if len(nats) == 1:
        return float(mean), float("nan")
    rest = nats - mean * tokens
    return float(mean), float(np.sqrt((rest**2).sum() * len(nats) / (len(nats) - 1)) / total)
