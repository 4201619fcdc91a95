"""Does a fine grid lower the temperature? ``python -m benchmarks.draws [--workdir=DIR] [--json=FILE] ...``.

A reverse step is usually one draw among the tokens and the mask, with float32 Gumbel noise whose largest value is 15.9:
tokens below 1e-7 of the largest weight never come. A step of 1/N puts all tokens near 1/N of it, so the finer the grid,
the lower the temperature, and the earlier sure positions are revealed (arXiv 2409.02908). That draw is written here,
nowhere in the library, beside `Ancestral` (first whether, then what) and `FirstHitting` (no grid).

Subjects: the exact denoiser of an oracle language (`hmm`, 2048 symbols), whose samples have the language's own exact
law as their judge; and, given the workdir of a masked run on text, its network, judged by the Witten-Bell bigram of its
training text and by its own bound. Unigram entropy: within a row, and of all rows together.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mdlm_jax
from mdlm_jax.config import freeze
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process, safe_ratio
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.core.schedules import Linear
from mdlm_jax.data import pipeline
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.baselines import WittenBell
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.models.denoise import Denoiser, Foreign
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.decoder import Look, Move, decoder
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.loop import decode

_AT_ONCE = 16


@decoder
class JointDraw(Ancestral):
    """The fault: argmax of log [r p(1), ..., r p(V), 1 - r] + Gumbel noise as `jax.random` makes it."""

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        schedule = self.process.schedule
        move = safe_ratio(schedule.drop(look.s, look.t), schedule.complement(look.t))
        move = jnp.where(look.last, 1.0, move)[:, None, None]
        order = jnp.argsort(~look.masked, axis=1)  # masks first, _AT_ONCE of a row at a time
        order = jnp.pad(order, ((0, 0), (0, -order.shape[1] % _AT_ONCE)), mode="edge")

        def body(carry):
            start, tokens = carry
            index = jax.lax.dynamic_slice_in_dim(order, start, _AT_ONCE, axis=1)
            hidden = jnp.take_along_axis(prediction.hidden, index[..., None], axis=1)
            drawn = race(suppressed_logits(prediction.head, hidden, self.mask_id), move, look.stream(start))
            return start + _AT_ONCE, jax.vmap(lambda row, at, new: row.at[at].set(new))(tokens, index, drawn)

        some = look.masked.sum(1).max()
        tokens = jax.lax.while_loop(lambda carry: carry[0] < some, body, (0, jnp.full(order.shape, -1, jnp.int32)))[1]
        tokens = tokens[:, : look.tokens.shape[1]]
        return Move(look.masked & (tokens >= 0), tokens), None


def race(logits: jax.Array, move: jax.Array, keys: jax.Array) -> jax.Array:
    """[B, K] tokens, -1 where the mask wins: ``logits`` [B, K, V], ``move`` [B, 1, 1], keys [B]."""
    stay = jnp.broadcast_to(jnp.log1p(-move), (*logits.shape[:2], 1))
    joint = jnp.concatenate([stay, jnp.log(move) + jax.nn.log_softmax(logits)], axis=-1).astype(jnp.float32)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, joint.shape[1:], jnp.float32, mode="low"))(keys)
    return jnp.argmax(joint + noise, axis=-1).astype(jnp.int32) - 1


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is sampled from.

    Attributes:
      judges: name -> function of rows [N, L] that gives nats a token, [N].
      natural: rows of the language or the held-out text, for the last line of the table.
      batch: rows at once. Few, where forwards are left out when nothing changed (``reuse``).
    """

    name: str
    denoise: Any
    params: Any
    process: Process
    length: int
    judges: dict[str, Callable]
    natural: np.ndarray
    batch: int
    reuse: bool


def exact_denoiser(params, tokens, time) -> Prediction:
    """log p(x_i | visible tokens) of a hidden-Markov language: forward and backward messages, then emission."""
    del time
    initial, transition, emission = params
    seen = tokens < emission.shape[1]
    evidence = jnp.where(seen[..., None], emission.T[jnp.where(seen, tokens, 0)], 1.0)  # [B, L, S]

    def messages(matrix, first, evidence):
        def onward(message, here):
            after = (message * here) @ matrix
            return after / after.sum(-1, keepdims=True), message

        return jax.lax.scan(onward, first, evidence.swapaxes(0, 1))[1].swapaxes(0, 1)

    rows = tokens.shape[0]
    before = messages(transition, jnp.broadcast_to(initial, (rows, len(initial))), evidence)
    after = messages(transition.T, jnp.ones((rows, len(initial))), evidence[:, ::-1])[:, ::-1]
    states = before * evidence * after
    return Prediction.from_logits(jnp.log(states / states.sum(-1, keepdims=True) @ emission))


def oracle(name: str, length: int, rows: int) -> Subject:
    """An exact denoiser, judged by the law it is exact for."""
    language = make(name)
    size = language.vocab_size
    params = tuple(jnp.asarray(x, jnp.float32) for x in (language.initial, language.transition, language.emission))
    return Subject(
        name, Foreign(exact_denoiser, timed=False), params, Process(size + 1, size, 0.0, Linear(0.0), head_size=size),
        length, {"exact law": lambda tokens: -language.log_prob(tokens) / length},
        language.sample(np.random.default_rng(1), rows, length), rows, False,
    )


def trained(workdir: Path, rows: int, batch: int) -> Subject:
    """The network of a masked run on text."""
    model, config = mdlm_jax.load(workdir), freeze(json.loads((workdir / "config.json").read_text()))
    built = pipeline.build(config.data, config.train.batch_size, model.tokenizer)
    text = built.train.sequential(0, built.train.num_rows)["tokens"].reshape(-1)
    bigram = WittenBell.fit(text, model.process.vocab_size)
    denoise = Denoiser(model.config, model.process.vocab_size, model.process)

    def by_bigram(tokens):
        first = bigram.unigram[tokens[:, :1]]
        rest = bigram.prob(tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1)).reshape(len(tokens), -1)
        return -np.log(np.concatenate([first, rest], axis=1)).mean(1)

    held_out = np.random.default_rng(0).permutation(built.valid.num_rows)[:rows]
    natural = np.concatenate([built.valid.sequential(int(row), 1)["tokens"] for row in held_out])
    judges = {"bigram": by_bigram, "own bound": lambda tokens: own_bound(denoise, model.params, model.process, tokens)}
    return Subject(str(config.data.source), denoise, model.params, model.process, config.data.length, judges, natural,
                   batch, True)


def own_bound(denoise, params, process, tokens: np.ndarray, draws: int = 8) -> np.ndarray:
    """Nats a token, [N]: mean cross-entropy of n masked tokens, n = 1..L uniform, stratified (arXiv 2409.02908)."""
    rng, (rows, length) = np.random.default_rng(2), tokens.shape

    @jax.jit
    def score(params, noisy, tokens):
        prediction = denoise(params, noisy)
        logits = suppressed_logits(prediction.head, prediction.hidden, process.mask_id)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]

    total = np.zeros(rows)
    for draw in range(draws):
        count = np.ceil((draw + rng.random((rows, 1))) / draws * length)
        masked = rng.random((rows, length)).argsort(1).argsort(1) < count
        found = np.asarray(score(params, np.where(masked, process.mask_id, tokens), tokens), np.float64)
        total -= np.where(masked, found, 0.0).sum(1) / count[:, 0] / draws
    return total


def sample(subject: Subject, law, steps: int, rows: int) -> tuple[np.ndarray, float]:
    """Rows [N, L] and forwards a row."""
    found = [decode(subject.denoise, subject.params, blank(subject.process.mask_id, subject.batch, subject.length,
                                                           first_row=first), law, steps=steps)
             for first in range(0, rows, subject.batch)]
    return np.concatenate([run.tokens for run in found]), float(np.mean([run.forwards for run in found]))


def measure(subject: Subject, tokens: np.ndarray) -> dict[str, float]:
    """Means over rows, and their standard errors."""
    figures = {name: judge(tokens) for name, judge in subject.judges.items()}
    figures["row entropy"] = unigram_entropy(tokens, subject.process.vocab_size)
    found = {name: float(x.mean()) for name, x in figures.items()}
    found |= {f"{name}, error": float(x.std(ddof=1) / np.sqrt(len(x))) for name, x in figures.items()}
    return found | {"entropy of all": float(unigram_entropy(tokens.reshape(-1), subject.process.vocab_size))}


def study(subject: Subject, grids: list[int], rows: int) -> list[dict]:
    """A line for every law, printed as it comes."""
    columns = [*subject.judges, "row entropy"]
    print(f"\n{subject.name}, {rows} rows of {subject.length}, nats\n| draw | steps | forwards | "
          + " | ".join(columns) + " | entropy of all |\n" + "|---" * (len(columns) + 4) + "|", flush=True)
    laws = [("joint float32", JointDraw(subject.process, reuse=subject.reuse), steps) for steps in grids]
    laws += [("factorised", Ancestral(subject.process, reuse=subject.reuse), steps) for steps in grids]
    laws += [("first hitting, parallel", FirstHitting(subject.process, parallel=True), grids[0]),
             ("first hitting", FirstHitting(subject.process), subject.length)]
    lines = []
    for name, law, steps in laws:
        tokens, forwards = sample(subject, law, steps, rows)
        lines.append({"draw": name, "steps": steps, "forwards": forwards} | measure(subject, tokens))
        show(lines[-1], columns)
    lines.append({"draw": "the language, the text", "steps": "", "forwards": ""} | measure(subject, subject.natural))
    show(lines[-1], columns)
    return lines


def show(line: dict, columns: list[str]) -> None:
    forwards = f"{line['forwards']:.0f}" if line["forwards"] else ""
    cells = [f"{line[name]:.3f} +- {line[f'{name}, error']:.3f}" for name in columns]
    print("| " + " | ".join([line["draw"], str(line["steps"]), forwards, *cells, f"{line['entropy of all']:.3f}"])
          + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="hmm:vocab=2048", help="a hidden-Markov oracle language")
    parser.add_argument("--workdir", type=Path, default=None, help="of a masked run on text; left out, if not given")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--rows", type=int, default=32, help="of the language, 64 tokens each")
    parser.add_argument("--text_rows", type=int, default=12)
    parser.add_argument("--text_steps", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    results = {"oracle": study(oracle(options.language, 64, options.rows), options.steps, options.rows)}
    if options.workdir is not None:
        results["text"] = study(trained(options.workdir, options.text_rows, 2), options.text_steps, options.text_rows)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
