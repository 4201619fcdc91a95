"""A masked network joined with an autoregressive twin: ``python -m benchmarks.twins_joined --workdir=DIR``.

Both are trained alike on oracle languages whose law is known; the copula (arXiv 2410.01949) needs nothing else, MARIA
(arXiv 2502.06901) a head on both. First table: whole rows of the languages of benchmarks.joint in 1, 2 and 4 steps, KL
and total variation from the language, exactly scored, for the copula and for marginals at the same positions, from the
left, and at the surest ones; with the twin alone; and the share of sampled rows that the language cannot write, for the
copula that keeps draws at random and for ancestral sampling. Second: filling masks of other shares in rows of another
language, nats a masked token of the true tokens, exactly, above the language's own; FLOPs and milliseconds a row.

Runs are resumed and figures read back from DIR. Means over seeds.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import LENGTHS, beyond, kept
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.models import flops, fused
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser
from mdlm_jax.models.fused import FusedConfig
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import Canvas, blank, canvas
from mdlm_jax.sampling.copula import Copula
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.margin import Margin
from mdlm_jax.sampling.maria import MARIA

STEPS, SHARES = (1, 2, 4), (0.25, 0.5, 0.75)
CAUSAL = {"train.objective": "autoregressive", "model.attention": "causal", "model.logit_shift": "true"}


def models(folder: Path, name: str, length: int, width: int, seed: int, options) -> tuple[Path, Path]:
    """Runs of the masked network and of the twin."""
    shared = {"data.source": f"language:{name}", "data.length": length, "data.seed": seed, "train.seed": seed,
              "model.layers": 2, "model.d_model": width, "model.heads": 2, "train.steps": options.steps,
              "train.checkpoint_every": options.steps, "eval.every": options.steps, "train.learning_rate": 3e-3,
              "train.batch_size": 64, "eval.final_rows": 512, "sample.num": 1}
    label = name.replace(":", "_")
    return (train(folder / f"{label}_{seed}", "oracle", **shared),
            train(folder / f"{label}_{seed}_twin", "oracle", **shared, **CAUSAL))


class Pair:
    """The two models, and the call's bias: -inf for ids that the language has no use for."""

    def __init__(self, masked: Path, twin: Path, name: str):
        self.model, self.twin, self.name = mdlm_jax.load(masked), mdlm_jax.load(twin), name
        self.process, self.columns = self.model.process, self.model.process.num_columns
        self.denoise = Denoiser(self.model.config, self.columns, self.process)
        self.bias = jnp.zeros(self.columns).at[jnp.array(beyond(name))].set(-jnp.inf)
        self.copula = functools.partial(
            Copula, self.process, Twin(self.twin.params, self.twin.config, self.process.mask_id),
            LeftReading(self.model.params, self.model.config))

    def scored(self, given: Canvas, rows, rule: Decoder, steps: int | None = None, batch: int = 512) -> np.ndarray:
        """log q of the rows, nats."""
        return forced_log_prob(self.denoise, self.model.params, given, rows, rule, steps=steps, batch=batch,
                               bias=self.bias)

    def marginals(self, rows: np.ndarray, where: np.ndarray, steps: int = 1) -> np.ndarray:
        """[N], log q of what stands ``where`` [N, L], from marginals, in so many steps from the left."""
        found, given = np.zeros(len(rows)), np.where(where, self.process.mask_id, rows)
        for number in range(steps):
            rank, each = where.cumsum(1) - 1, -(-where.sum(1, keepdims=True) // steps)
            now = where & (rank // each == number)
            found += (self._law(self.model, self.denoise, given, rows) * now).sum(1)
            given = np.where(now, rows, given)
        return found

    def alone(self, rows: np.ndarray, where: np.ndarray) -> np.ndarray:
        """[N], log q of what stands ``where`` by the twin, which sees what is left of it."""
        twin = CausalDenoiser(self.twin.config, self.process.mask_id, self.columns)
        return (self._law(self.twin, twin, rows, rows) * where).sum(1)

    def _law(self, model, denoise, tokens, rows) -> np.ndarray:
        found = []
        for part in range(0, len(rows), 1024):
            said = denoise(model.params, jnp.asarray(tokens[part : part + 1024]), None).logits()
            logits = np.asarray(said + self.bias, np.float64)
            logits[..., self.process.mask_id : self.process.mask_id + 1] = -np.inf
            log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
            found.append(np.take_along_axis(log_p, rows[part : part + 1024, :, None], -1)[..., 0])
        return np.concatenate(found)


def whole_rows(pair: Pair, options) -> dict[str, list[float]]:
    """Decoder and steps -> KL, total variation, and the share of sampled rows that the language cannot write."""
    name, nan = pair.name, float("nan")
    language, length, mask_id = make(name), LENGTHS[name], pair.process.mask_id
    rows = language.sample(np.random.default_rng(1234), options.rows, length)
    log_p, every, given = language.log_prob(rows), np.ones(rows.shape, bool), blank(mask_id, *rows.shape)
    found = {}

    def tell(title: str, log_q: np.ndarray | None, rule: Decoder | None = None, steps: int | None = None):
        kl, tv = nan, nan
        if log_q is not None:
            told = distance(log_p, log_q)
            kl, tv = told.kl, told.tv
        wrong = nan
        if rule is not None:
            drawn = decode(pair.denoise, pair.model.params, given, rule, steps=steps, seed=5, bias=pair.bias).tokens
            wrong = float(np.isneginf(language.log_prob(np.asarray(drawn))).mean())
        found[title] = [kl, tv, wrong]

    tell("the twin alone", pair.alone(rows, every))
    for steps in STEPS:
        prefix, surest = pair.copula(keeps="prefix"), Margin(mask_id, temperature=1.0)
        tell(f"copula, prefix, {steps}", pair.scored(given, rows, prefix, steps), prefix, steps)
        tell(f"copula, random, {steps}", None, pair.copula(), steps)
        tell(f"marginals, from the left, {steps}", pair.marginals(rows, every, steps))
        tell(f"marginals, the surest, {steps}", pair.scored(given, rows, surest, steps), surest, steps)
        tell(f"ancestral, {steps}", None, Ancestral(pair.process), steps)
    return found


def true_law(language, rows: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[N], log p of what stands ``where`` given the rest, by the chain rule from the left."""
    found = np.zeros(len(rows))
    for i in range(rows.shape[1]):
        law = language.conditional_log_probs(rows, ~where | (np.arange(rows.shape[1]) < i))
        found += np.where(where[:, i], np.take_along_axis(law[:, i], rows[:, i : i + 1], -1)[:, 0], 0.0)
    return found


def fillings(pair: Pair, heads: dict[str, fused.FusedHead], options) -> dict[str, list[float]]:
    """Rule and share of masks -> nats a masked token above the language's own, FLOPs and milliseconds a row."""
    language, length, mask_id = make(pair.name), options.length, pair.process.mask_id
    rng = np.random.default_rng(77)
    rows = language.sample(rng, options.fill_rows, length)
    found = {}
    for share in SHARES:
        number = round(share * length)
        where = rng.random(rows.shape).argsort(1) < number
        given, own = canvas(np.where(where, mask_id, rows), where), true_law(language, rows, where)
        span = float((length - where[:, ::-1].argmax(1) - where.argmax(1)).mean())
        singly, cost = Adjust(mask_id=mask_id, tokens=1), functools.partial(work, pair, length, number, span)
        rules = {"masked, one by one": (singly, None, cost(masked=number)),
                 "copula, 1 step": (pair.copula(keeps="prefix"), 1, cost(masked=1, causal=1)),
                 **{title: (MARIA(head, mask_id), None, cost(masked=1, fused=True)) for title, head in heads.items()}}
        found[f"the twin alone, {share}"] = [float(((own - pair.alone(rows, where)) / number).mean()), np.nan, np.nan]
        found[f"masked, marginals, {share}"] = [float(((own - pair.marginals(rows, where)) / number).mean()),
                                                cost(masked=1, twin=False), timed(pair, given, Margin(mask_id), 1)]
        for title, (rule, steps, each) in rules.items():
            log_q = pair.scored(given, rows, rule, steps)
            found[f"{title}, {share}"] = [float(((own - log_q) / number).mean()), each, timed(pair, given, rule, steps)]
            print(title, share, found[f"{title}, {share}"], flush=True)
    return found


def work(pair: Pair, length: int, number: int, span: float, *, masked: int, causal: int = 0, fused: bool = False,
         twin: bool = True) -> float:
    """FLOPs a row: ``masked`` forwards of the masked network, ``causal`` ones of it under a causal mask, with either a
    twin's forward over the row and its pass over ``span`` tokens; heads at the masks alone."""
    network, other = pair.model.config, pair.twin.config
    joined = fused or causal > 0
    total = masked * flops.forward_flops(network, length, length, 0)
    total += causal * flops.forward_flops(network, length, (length + 1) // 2, 0)
    columns = number * 2 * network.head_size
    if not joined:
        return total + columns * network.d_model  # of each token once
    twin_work = flops.forward_flops(other, length, (length + 1) // 2, 0)
    total += twin_work * (1 + span / length)
    return total + columns * ((network.d_model if fused else 2 * network.d_model) + other.d_model)


def timed(pair: Pair, given: Canvas, rule: Decoder, steps: int | None) -> float:
    """Milliseconds a row, of the second of two runs."""
    for _ in range(2):
        begin = time.perf_counter()
        decode(pair.denoise, pair.model.params, given, rule, steps=steps, bias=pair.bias).tokens.block_until_ready()
    return 1e3 * (time.perf_counter() - begin) / given.shape[0]


def heads_of(pair: Pair, masked: Path, twin: Path, seed: int, options) -> dict[str, fused.FusedHead]:
    """MARIA's head at first, and trained."""
    run = train(options.workdir / f"{pair.name}_{seed}_maria", "maria", **{
        "train.init_from": masked, "train.twin": twin, "data.source": f"language:{pair.name}",
        "data.length": options.length, "data.seed": seed, "train.seed": seed, "train.steps": options.head_steps,
        "train.checkpoint_every": options.head_steps, "eval.every": options.head_steps, "train.batch_size": 64,
        "sample.num": 1})
    head = mdlm_jax.load(run).fused
    config = FusedConfig(pair.model.config, pair.twin.config)
    fresh = fused.FusedHead(fused.averaged(config, pair.model.params, pair.twin.params), head.twin, head.bias)
    return {"MARIA at first": fresh, "MARIA trained": head}


def first_table(options, seed: int) -> dict[str, dict[str, list[float]]]:
    def measured(name: str) -> dict:
        return whole_rows(Pair(*models(options.workdir, name, LENGTHS[name], 32, seed, options), name), options)

    return {name: kept(options.workdir / f"{name}_{seed}.json", lambda name=name: measured(name))
            for name in options.languages}


def second_table(options, seed: int) -> dict[str, list[float]]:
    def measured() -> dict:
        runs = models(options.workdir, options.filled, options.length, 64, seed, options)
        pair = Pair(*runs, options.filled)
        return fillings(pair, heads_of(pair, *runs, seed, options), options)

    return kept(options.workdir / f"{options.filled}_fill_{seed}.json", measured)


def mean(values) -> list[str]:
    """Means over seeds, with standard errors where there are several."""
    values = np.array(values, float)
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(values.shape[1], np.nan)
    return ["-" if np.isnan(m) else f"{m:.3f}" if np.isnan(e) else f"{m:.3f} +- {e:.3f}"
            for m, e in zip(values.mean(0), error, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="*", default=list(LENGTHS))
    parser.add_argument("--filled", default="hmm", help="the language of the second table")
    parser.add_argument("--length", type=int, default=32, help="of its rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of every network")
    parser.add_argument("--head_steps", type=int, default=1000, help="of MARIA's head")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--fill_rows", type=int, default=512)
    options = parser.parse_args()
    first = [first_table(options, seed) for seed in options.seeds]
    print("| language | decoder, steps | KL | TV | impossible rows |\n|---|---|---|---|---|")
    for name in options.languages:
        for title in first[0][name]:
            print(f"| {name} | {title} | {' | '.join(mean([one[name][title] for one in first]))} |")
    second = [second_table(options, seed) for seed in options.seeds]
    print("\n| rule | masks | nats a masked token above the truth | MFLOPs a row | ms a row |\n|---|---|---|---|---|")
    for title in second[0]:
        name, _, share = title.rpartition(", ")
        cells = mean([[one[title][0], one[title][1] / 1e6, one[title][2]] for one in second])
        print(f"| {name} | {share} | {' | '.join(cells)} |")
    print(json.dumps({"seeds": options.seeds, "rows": options.rows, "fill_rows": options.fill_rows}))


if __name__ == "__main__":
    main()
