"""What a Python user holds: a network with its parameters, its noise and its tokenizer. ``mdlm_jax.load`` makes one."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from mdlm_jax.core.process import Process
from mdlm_jax.evaluation.answers import Likelihood
from mdlm_jax.generation import answering, generate, likelihood, score
from mdlm_jax.generation.prompts import is_single
from mdlm_jax.models import api
from mdlm_jax.models.circuit import Circuit
from mdlm_jax.models.conditioning import checked_classes
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.fused import FusedHead
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.models.joint import JointSampler
from mdlm_jax.models.quality import QualityHead
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded model.

    Attributes:
      params: the tree of `models.api`.
      description: the network, its token ids and where it came from.
      process: its noise; None for an autoregressive model, which knows no mask.
      tokenizer: `data.tokenizers.Tokenizer`, or None where the files hold none.
      schedule: [V], what a run of the objective genmd4 learned beside the network; else None.
      joint: the layer that a run of the objective joint learned beside it, for the decoder ``adjust``; else None.
      quality: what one of the objectives planner and prism learned, for the decoders ``p2`` and ``prism``; else None.
      fused: the head that a run of the objective maria learned, with its twin, for the decoder ``maria``; else None.
      circuit: what one of the objective codd learned, for the decoder ``codd``; else None.
    """

    params: dict
    description: Description
    process: Process | Any
    tokenizer: Any = None
    schedule: jax.Array | None = None
    joint: JointSampler | None = None
    quality: QualityHead | None = None
    fused: FusedHead | None = None
    circuit: Circuit | None = None

    def __repr__(self) -> str:
        """One line, without the weights."""
        from mdlm_jax.models.shapes import parameter_count

        said = self.description
        kind = said.family or self.config.attention
        limit = f", max_length {said.max_length}" if said.max_length else ""
        size = f"{parameter_count(self.config):,} parameters in {said.dtype or self.config.dtype}"
        return (f"LanguageModel({kind}, {size}, {self.config.layers} layers, width {self.config.d_model}, "
                f"vocabulary {self.config.vocab_size:,}{limit})")

    @property
    def config(self) -> TransformerConfig:
        """The network."""
        return self.description.config

    def logits(self, tokens, attention_mask=None, *, time=None, condition=None, latent=None,
               raw: bool = False) -> jax.Array:
        """Scores of every id at every position, [B, L, head_size] float32, on the mesh of the parameters.

        Args:
          tokens: [B, L] integers.
          attention_mask: [B, L], 1 where there is a token and 0 where there is padding; None: no padding.
          time: [B] noise levels, for networks conditioned on them.
          condition: [B] classes, -1 for none, for networks that have them; None: none for all rows.
          latent: [B] numbers in [0, 1], for networks that read one: mixtures (`models.latent`).
          raw: the network's own rows. Otherwise row i scores token i, whatever the network was trained with.
        Raises:
          ValueError: another shape, or ids that the embedding has no row for.
        Examples:
          >>> import mdlm_jax
          >>> model = mdlm_jax.load("runs/first")
          >>> model.logits([[100, 101, 102]]).shape == (1, 3, model.config.head_size)
          True
        """
        tokens = _checked(tokens, self.config.vocab_size)
        if attention_mask is not None and np.shape(attention_mask) != tokens.shape:
            raise ValueError(f"attention_mask: has shape {np.shape(attention_mask)}; it must be {tokens.shape}")
        mask = None if attention_mask is None else np.asarray(attention_mask, np.int32)
        rows, length = tokens.shape
        condition = None if condition is None else checked_classes(condition, self.config.classes, rows)
        latent = None if latent is None else _checked_latent(latent, rows)
        tokens, mask, *of_rows = _filled_up(self.config, self.mesh, tokens, mask, time, condition, latent)
        logits = _logits(self.config, raw, self.mesh, self.params, tokens, mask, *of_rows)
        return logits if logits.shape[:2] == (rows, length) else logits[:rows, :length]

    def generate(self, prompts, *, new_tokens: int | None = None, progress: bool | Progress = False, **options):
        """Answers to prompts.

        Args:
          prompts: a string or a row of token ids, or several, of any lengths.
          new_tokens: tokens an answer has at most; None: 128, or as many as there is room for behind its prompt.
          progress: True: a bar on standard error, which moves on after every batch; or a function of the answers done
            and to do.
          options: those of `generation.options.Options` (decoder, steps, block_length, stop, seed, ...), and numbers
            of the decoder, such as ``temperature=0.7``. ``sampling.registry`` lists the decoders.
        Returns:
          A `generation.generate.Generation` for one prompt, a list for several: its ``str`` is the text.
        Raises:
          ConfigError: what does not fit the model or each other, before anything is compiled.
        Examples:
          >>> import mdlm_jax
          >>> model = mdlm_jax.load("runs/first")
          >>> answer = model.generate("def main(", new_tokens=8, steps=4, seed=1)
          >>> len(answer.tokens), answer.finish, answer.forwards
          (8, 'length', 4)
          >>> [len(answer.text) for answer in model.generate(["import ", "class A:"], new_tokens=8, steps=4)]
          [8, 8]
        """
        found = generate.gathered(generate.answer_job(self, prompts, new_tokens, **options), progress)
        return found[0] if is_single(prompts) else found

    def answer(self, prompts, output: Path | str, *, new_tokens: int | None = None, num: int = 1,
               progress: bool | Progress = True, **options) -> list[dict[str, Any]]:
        """As `generate`, for many prompts: every answer is in a file as soon as its batch is done.

        The same call goes on after a kill, whenever that came, and answers what is not there yet. Each is answered
        once, and the file is in the end what it is without a kill. While there are some to come they are in a folder
        beside it, ``OUTPUT.parts``; what they answer, and how, is in ``OUTPUT.job.json``.

        Args:
          prompts: as for `generate`; or dicts, whose ``prompt`` is one of these and whose other fields are written
            beside the answer.
          output: the file to be made, JSON lines in the order of the prompts: prompt, index, sample (from 0), text,
            finish, tokens (how many), forwards; without a tokenizer token_ids.
          new_tokens, options: as for `generate`; the row id of sample s of prompt i is i * num + s.
          num: samples of each prompt.
          progress: as for `generate`; what was done earlier counts.
        Returns:
          The objects of the file.
        Raises:
          ConfigError: as `generate`; a file of another job (prompts, options, weights), or of none; one that another
            process is writing.
        Examples:
          >>> import mdlm_jax
          >>> model = mdlm_jax.load("runs/first")
          >>> prompts = [f"def f{i}(" for i in range(5)]
          >>> found = model.answer(prompts, "answers.jsonl", new_tokens=8, steps=4, progress=False)
          >>> [len(one["text"]) for one in found], found[4]["prompt"]
          ([8, 8, 8, 8, 8], 'def f4(')
          >>> model.answer(prompts, "answers.jsonl", new_tokens=8, steps=2)
          Traceback (most recent call last):
          ...
          mdlm_jax.errors.ConfigError: output=answers.jsonl: holds answers of another job: steps is 4 there and 2 ...
        """
        return answering.answer(self, prompts, output, new_tokens=new_tokens, num=num, progress=progress, **options)

    def infill(self, texts, *, hole: str = "<mask>", progress: bool | Progress = False, **options):
        """Texts with their holes filled; what is given stays as it is.

        Args:
          texts: a string in which every ``hole`` stands for one token to be written, or a row of token ids with the
            mask's where one is to be written; or several. Networks of any order are asked by assd.
          progress, options: as for `generate`; by default everything is written at once, a row in as many steps as it
            has holes. Rows of other numbers of steps are other batches; ``steps`` puts rows of unequal holes into one.
        Returns, raises: as `generate`, whole texts.

        Examples:
          >>> import mdlm_jax
          >>> model = mdlm_jax.load("runs/first")
          >>> text = str(model.infill("def add(<mask><mask><mask>):"))
          >>> text.startswith("def add("), text.endswith("):"), len(text)
          (True, True, 13)
        """
        found = generate.gathered(generate.infill_job(self, texts, hole, **options), progress)
        return found[0] if is_single(texts) else found

    def score(self, texts, rows, *, hole: str = "<mask>", latents: int | None = None, **options) -> np.ndarray | float:
        """log q(row | text), nats: exactly how probable it is that `infill` with these options writes the row.

        Of decoders that choose positions by the canvas alone (margin, entropy_bound, klass, codd, maria, ...), not of
        those that choose at random or by what they drew. A network that reads a latent is a mixture: steps=1 alone, by
        quadrature. ``evaluation.scoring.distance`` makes KL and total variation of two such laws.

        Args:
          texts: as for `infill`; one may serve several rows.
          rows: each text with its holes filled: token ids, such as ``row`` of what `infill` returned, or strings.
          latents: points of the quadrature; None: 1024.
          options: as for `infill`; temperature, truncation, bias and guidance are part of q.
        Returns:
          A float for one row, else float64 [N]; -inf for rows that cannot be written so.
        Raises:
          ConfigError: as `infill`; a decoder that cannot be scored; a row that is no filling of its text.
        Examples:
          >>> import mdlm_jax, numpy as np
          >>> model = mdlm_jax.load("runs/first")
          >>> how = {"decoder": "margin", "temperature": 1.0, "steps": 1}
          >>> pairs = [[100 + i, 100 + j] for i in range(2) for j in range(2)]
          >>> one, four = model.score("<mask>d", [100, 100], **how), model.score("<mask><mask>", pairs, **how)
          >>> one < 0, bool(np.exp(four).sum() < 1)
          (True, True)
        """
        return score.score(self, texts, rows, hole=hole, latents=latents, **options)

    def stream(self, prompts, *, new_tokens: int | None = None, every: str = "block", **options) -> Iterator:
        """As `generate`, all rows as they stand: before the first step, after every ``block`` or ``step``, finished.

        Yields what `generate` returns, with masks where nothing is written yet and ``finish`` None.
        """
        job = generate.answer_job(self, prompts, new_tokens, **options)
        return (found[0] if is_single(prompts) else found for found in generate.snapshots(job, every))

    def log_likelihood(self, prompts, answers, *, method: str = "bound", draws: int | None = None,
                       error: float | None = None, guidance: float = 0.0, **options) -> Likelihood:
        """log p(answer | prompt) in nats, each encoded apart: exact for causal networks, else by ``method``.

        Of the network: a joint layer or a planner beside it changes how tokens are written, and nothing here. A head or
        a circuit that makes another law of it (runs of the objectives maria and codd) is refused; `score` has that law.

        Args:
          prompts: as for `generate`; one may serve several answers.
          answers: one for each.
          method: bound: over masks, which are drawn, or all taken where they are no more than the draws; any_order:
            the same bound along whole random orders; chain_rule: of writing from left to right, exact, a pass a token.
          draws: masks a pair, a multiple of 8 (of any_order: orders, at least 2); the standard error is that over
            them; default 128 (8), and with ``error`` at most 1024 (64).
          error: nats of standard error of a pair that are wanted: a pilot, which is then left out, tells how many draws
            that takes; None: all are drawn.
          guidance: strength of unsupervised guidance; the figure is then no bound.
          options: seed, row_ids, batch_size, max_length, special; progress, a function of the passes done and to do.
        Returns:
          `evaluation.answers.Likelihood`.
        Raises:
          ConfigError: what does not fit the model; mixed noise; a law that is not the network's own.
        Examples:
          >>> import mdlm_jax
          >>> model = mdlm_jax.load("runs/first")
          >>> found = model.log_likelihood("import ", ["os", "re"])  # of two letters all masks are taken
          >>> found.tokens.tolist(), bool((found.nats < 0).all()), found.stderr.tolist()
          ([2, 2], True, [0.0, 0.0])
        """
        return likelihood.log_likelihood(self, prompts, answers, method=method, draws=draws, error=error,
                                         guidance=guidance, **options)

    def greedy_match(self, prompts, answers, *, guidance: float = 0.0, **options) -> np.ndarray:
        """Whether greedy decoding, one token at a time, surest first, writes each answer: [N] bool.

        Rows are given up at their first wrong token. Args, raises: as `log_likelihood`; options: batch_size,
        max_length, special.
        """
        return likelihood.greedy_match(self, prompts, answers, guidance=guidance, **options)

    @property
    def mesh(self) -> AbstractMesh | None:
        """The mesh that the parameters lie on; None: they lie on one device, or on the host."""
        layout = getattr(self.params["embedding"], "sharding", None)
        return layout.mesh.abstract_mesh if isinstance(layout, NamedSharding) else None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(config, raw, mesh, params, tokens, attention_mask, time, condition, latent):
    """On a mesh it must be set: without one the partitioner gathers weights, and kernels do not compile at all."""
    with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
        return api.apply(config, params, tokens, attention_mask=attention_mask, time=time, condition=condition,
                         latent=latent, raw=raw).logits()


def _filled_up(config: TransformerConfig, mesh: AbstractMesh | None, tokens: np.ndarray, mask, *of_rows):
    """Rows and positions that every shard has equally many of; nothing of what is added is seen by what was there."""
    if mesh is None:
        return tokens, mask, *of_rows
    rows, length = tokens.shape
    more, longer = -rows % data_shards(mesh), -length % mesh.shape[LENGTH_AXIS]
    if longer and config.attention == "two_stream":
        raise ValueError(f"tokens: two streams of {length} positions cannot be shared by mesh axis context="
                         f"{mesh.shape[LENGTH_AXIS]}; give a multiple of it")
    if longer:
        mask = np.ones(tokens.shape, np.int32) if mask is None else mask
        mask = np.pad(mask, ((0, 0), (0, longer)))
    mask = None if mask is None else np.pad(mask, ((0, more), (0, 0)), mode="edge")
    padded = (None if np.ndim(x) == 0 else jnp.pad(jnp.asarray(x), (0, more), mode="edge") for x in of_rows)
    return np.pad(tokens, ((0, more), (0, longer))), mask, *padded


def _checked_latent(latent, rows: int) -> np.ndarray:
    latent = np.asarray(latent, np.float32)
    if latent.shape != (rows,) or not ((latent >= 0) & (latent <= 1)).all():
        raise ValueError(f"latent: must be [{rows}] numbers in [0, 1], one a row, and is {latent}")
    return latent


def _checked(tokens, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens: are {tokens.dtype}{list(tokens.shape)}; they must be integers [B, L], as "
                         "[model.tokenizer.encode(text)]")
    if not tokens.size:
        raise ValueError(f"tokens: have shape {list(tokens.shape)}; give at least one row of one token")
    if not 0 <= tokens.min() <= tokens.max() < vocab_size:
        outside = tokens[(tokens < 0) | (tokens >= vocab_size)].flat[0]
        raise ValueError(f"tokens: hold the id {outside}; ids must lie in 0..{vocab_size - 1}")
    return tokens.astype(np.int32)
