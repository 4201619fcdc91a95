"""All joint and few-step methods on one base: ``python -m benchmarks.few_steps --workdir=DIR``.

A masked network is trained on a small language whose law is known, and every method of the library that means to write
several tokens a forward is trained on from it, or beside it, for about as long. Rows are then written in 1, 2 and 4
forwards (or in as many as the method takes; of six tokens two at a time are three), and of each method's come

    TV           total variation from the language to what is written, by --rows rows; chance alone makes of as many
                 rows of the language itself what stands in the first line
    right        the share of rows that the language can say
    entropy      of the rows written, by their counts, over that of rows of the language: below 1, choices are missing
    forwards     of the network, a row; what else is run stands beside it
    parameters   more than the network's, over the network's
    training     FLOPs over those of the base's training

Two methods have bases of their own, trained as long: any-subset networks (ASSD) and uniform noise (Duo). Rows are drawn
at temperature 1, without ids that the language does not have. SDTT and Duo are rounds from 8 steps, and each number of
forwards is asked of the round that is meant for it.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import LENGTHS, beyond, kept, means, models, plain
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.scoring import sampled_tv
from mdlm_jax.models import flops
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.adjust_verified import AdjustVerified

FORWARDS = (1, 2, 4)
RANDOM = {"decoder": "low_confidence", "remasking": "random", "temperature": 1.0}


@dataclasses.dataclass(frozen=True)
class Base:
    """One language and seed."""

    folder: Path
    name: str
    seed: int
    options: argparse.Namespace

    @property
    def length(self) -> int:
        return LENGTHS[self.name]

    def run(self, title: str, config: str, **fields) -> Path:
        """A run on rows of the language, made where it is missing."""
        steps = fields.get("train.steps", self.options.more)
        return train(self.folder / f"{self.name}_{self.seed}_{title}", config, **{
            "data.source": f"language:{self.name}", "data.length": self.length, "data.seed": self.seed,
            "train.seed": self.seed, "train.steps": steps, "train.checkpoint_every": steps, "eval.every": steps,
            "train.batch_size": 64, "eval.final_rows": 512} | fields)

    def fresh(self, title: str, **fields) -> Path:
        """A network of its own, as large as the base and trained as long."""
        return self.run(title, "oracle", **{
            "model.layers": 2, "model.d_model": 32, "model.heads": 2, "train.steps": self.options.steps,
            "train.learning_rate": 3e-3} | fields)

    def onward(self, title: str, config: str, start: Path | None = None, **fields) -> Path:
        """A run from the base, or from ``start``, with the recipe's learning rate unless told otherwise."""
        return self.run(title, config, **{"train.init_from": start or self.masked} | fields)

    @property
    def masked(self) -> Path:
        return self.folder / f"{self.name}_{self.seed}"  # where benchmarks.joint has it

    @property
    def trajectories(self) -> Path:
        return self.folder / f"{self.name}_{self.seed}_trajectories"

    def rounds(self, config: str, start: Path) -> dict[int, Path]:
        """By the steps it is meant for, each round of distillation from 8 steps."""
        found, kind = {}, config.partition(":")[2] or config
        for steps in (8, 4, 2):
            start = found[steps // 2] = self.onward(f"{kind}_{steps}", config, start,
                                                    **{"train.objective": f"{kind}:{steps}",
                                                       "train.learning_rate": 1e-3})
        return found


@dataclasses.dataclass(frozen=True)
class Way:
    """A method.

    Attributes:
      title: in the table. runs: all that had to be trained beyond the base, for its costs.
      model: by the number of forwards asked for. numbers: of `LanguageModel.generate`, by the same.
      forwards: what is asked for. besides: what is run beside the forwards.
      extra: parameters beyond the network's. flops: of training, beyond those of ``runs``.
    """

    title: str
    runs: list[Path]
    model: Callable[[int], mdlm_jax.LanguageModel]
    numbers: Callable[[int], dict[str, Any]]
    forwards: tuple[int, ...] = FORWARDS
    besides: str = ""
    extra: int = 0
    flops: float = 0.0


def ways(base: Base) -> Iterator[Way]:
    """Every method; what it needs is trained when it is asked for."""
    length, loaded = base.length, {}

    def load(path: Path) -> mdlm_jax.LanguageModel:
        return loaded.setdefault(path, mdlm_jax.load(path))

    def each(forwards: int) -> int:
        return -(-length // forwards)

    adjust = models(base.folder, base.name, length, base.seed, base.options, **{
        "train.any_order": 1.0, "train.objective": f"joint:{length - 1}"})
    layer, mask_id = adjust.joint, adjust.process.mask_id
    written = flops.forward_flops(adjust.config, length, length, length) * length * base.options.trajectories
    yield Way("marginals, one by one", [], lambda n: adjust, lambda n: {"decoder": Adjust(plain(layer), mask_id, 1)},
              (length,))
    yield Way("marginals, least entropy", [], lambda n: adjust,
              lambda n: {"decoder": Adjust(plain(layer), mask_id, each(n))})
    yield Way("marginals, random places", [], lambda n: adjust, lambda n: RANDOM | {"steps": n})
    beside = {"extra": size(layer.params), "flops": written}
    joint = base.folder / f"{base.name}_{base.seed}_joint_any_order=1.0_objective=joint:{length - 1}"
    yield Way("ADJUST", [joint], lambda n: adjust, lambda n: {"decoder": Adjust(layer, mask_id, each(n))},
              besides="a pass of the layer a token", **beside)
    yield Way("ADJUST, checked", [joint], lambda n: adjust,
              lambda n: {"decoder": AdjustVerified(layer, mask_id, 3)}, (0,), "on 4 rows, with passes", **beside)
    run = base.onward("codd", "codd", **{"train.objective": f"codd:{base.options.states}"})
    yield Way("CoDD", [run], lambda n: load(run), lambda n: {"decoder": "codd", "tokens": each(n)},
              besides="a pass of the chain", extra=size(load(run).circuit.params))
    yield from with_twin(base, load)
    run = base.onward("di4c", "di4c", **{"train.objective": "di4c:8,8,0.1,0", "model.latent": 32,
                                         "train.learning_rate": 3e-3, "train.steps": base.options.mixture})
    extra = size(load(run).params) - size(adjust.params)
    yield Way("Di4C, random places", [run], lambda n: load(run), lambda n: RANDOM | {"steps": n}, extra=extra)
    if base.seed in base.options.whole:
        yield from trained_on(base, load)


def trained_on(base: Base, load: Callable) -> Iterator[Way]:
    """SDTT, dParallel, DMax, and those with bases of their own."""
    length = base.length
    sdtt = base.rounds("sdtt", base.masked)
    yield Way("SDTT", list(sdtt.values()), lambda n: load(sdtt[n]), lambda n: {"decoder": "ancestral", "steps": n})
    yield from certain(base, load)
    run = base.fresh("any_subset", **{"train.objective": "any_subset:0,0.5", "model.attention": "permutation"})
    yield Way("ASSD, serial", [run], lambda n: load(run), lambda n: {"decoder": "assd", "drafts": 1}, (length,))
    yield Way("ASSD, 5 drafts", [run], lambda n: load(run), lambda n: {"decoder": "assd"}, (0,))
    start = base.fresh("uniform", **{"process.mixing": 1.0})
    duo = base.rounds("sdtt:duo", start)
    yield Way("uniform noise", [start], lambda n: load(start), lambda n: {"decoder": "ancestral", "steps": n},
              (*FORWARDS, 64))
    yield Way("Duo's distillation", [start, *duo.values()], lambda n: load(duo[n]),
              lambda n: {"decoder": "ancestral", "steps": n})


def with_twin(base: Base, load: Callable) -> Iterator[Way]:
    """DCD and MARIA."""
    twin = base.fresh("twin", **{"train.objective": "autoregressive", "model.attention": "causal",
                                 "model.logit_shift": True})
    weights = size(load(twin).params)
    passes = "a causal forward, two passes of the twin"
    yield Way("the twin, one by one", [twin], lambda n: load(twin), lambda n: {}, (base.length,), extra=weights)
    for keep in ("prefix", "random"):
        yield Way(f"DCD, {keep}", [twin], lambda n: load(base.masked),
                  lambda n, keep=keep: {"decoder": "copula", "twin": load(twin), "keeps": keep, "steps": n},
                  besides=passes, extra=weights)
    run = base.onward("maria", "maria", **{"train.twin": twin})
    yield Way("MARIA", [twin, run], lambda n: load(run), lambda n: {"decoder": "maria"}, (1,),
              "two passes of the twin", extra=weights + size(load(run).fused.params))


def certain(base: Base, load: Callable) -> Iterator[Way]:
    """dParallel and DMax, which choose one of several."""
    run = base.onward("dparallel", "dparallel", **{
        "train.objective": f"dparallel:{base.length},2,0.5", "data.source": f"trajectories:{base.trajectories}",
        "train.learning_rate": 1e-3})
    yield Way("dParallel, random places", [run], lambda n: load(run), lambda n: RANDOM | {"steps": n})
    dmax = base.onward("dmax", "dmax", **{"train.learning_rate": 1e-3})
    yield Way("DMax", [dmax], lambda n: load(dmax), lambda n: {"decoder": "soft_parallel", "temperature": 1.0}, (0,))


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def measured(base: Base) -> dict[str, list[float]]:
    """Title and forwards asked for -> TV, right, entropy, forwards, parameters, training."""
    language, options = make(base.name), base.options
    own = language.sample(np.random.default_rng(7), options.rows, base.length)
    found = {"the language, ": [*judged(language, own, own), 0.0, 0.0, 0.0]}
    for way in ways(base):
        network = size(mdlm_jax.load(base.masked).params)
        cost = way.flops + sum(spent(run) for run in way.runs)
        for asked in way.forwards:
            rows, forwards = written(way, asked, base)
            figures = [*judged(language, rows, own), forwards, way.extra / network, cost / spent(base.masked)]
            beside = f" ({way.besides})" if way.besides else ""
            found[f"{way.title}{beside}, {asked or ''}"] = figures
            print(f"{base.name}, seed {base.seed}: {way.title}, {asked}: TV {figures[0]:.3f}", flush=True)
    return found


def spent(run: Path) -> float:
    """FLOPs of its training."""
    return json.loads((run / "summary.json").read_text())["training"]["flops"]


def written(way: Way, asked: int, base: Base) -> tuple[np.ndarray, float]:
    """Rows, and forwards a row."""
    answers = way.model(asked).generate(
        [np.zeros(0, np.int32)] * base.options.rows, new_tokens=base.length, max_length=base.length, stop_id=None,
        seed=base.seed + 5, suppress=beyond(base.name), batch_size=4096, **way.numbers(asked))
    return np.stack([one.row for one in answers]), float(np.mean([one.forwards for one in answers]))


def judged(language, rows: np.ndarray, own: np.ndarray) -> list[float]:
    """TV, the share of rows that can be, and the entropy of rows over that of ``own``, by their counts."""
    right = np.isfinite(language.log_prob(rows)).mean()
    return [sampled_tv(rows, language.rows, language.law)[0], float(right), entropy(rows) / entropy(own)]


def entropy(rows: np.ndarray) -> float:
    counts = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(counts * np.log(counts)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=["shuffle", "replace"],
                        choices=("shuffle", "replace", "parity"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the base")
    parser.add_argument("--more", type=int, default=2500, help="of every training from it")
    parser.add_argument("--mixture", type=int, default=1000, help="steps of Di4C's training, on 8 copies of every row")
    parser.add_argument("--states", type=int, default=64, help="of CoDD's chain")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=1 << 15)
    parser.add_argument("--whole", type=int, nargs="+", default=[0, 1, 2],
                        help="seeds of what is trained in rounds, or has its own base, too")
    options = parser.parse_args()
    options.joint_steps = options.more
    print("| language | method | asked | TV | right | entropy | forwards | parameters | training |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.languages:
        found = [kept(options.workdir / f"{name}_{seed}_few_steps.json",
                      lambda name=name, seed=seed: measured(Base(options.workdir, name, seed, options)))
                 for seed in options.seeds]
        for title in found[0]:
            method, _, asked = title.rpartition(", ")
            cells = [f"{mean:.3f}" + ("" if np.isnan(error) or number > 2 else f" +- {error:.3f}")
                     for number, (mean, error) in enumerate(means([one[title] for one in found if title in one]))]
            print(f"| {name} | {method} | {asked} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
