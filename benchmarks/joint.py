"""What several tokens a forward cost, and what ADJUST wins back: ``python -m benchmarks.joint --workdir=DIR``.

On five small oracle languages a network is trained, writes trajectories one token a forward, and a joint layer learns
to imitate it (`models.joint`, arXiv 2509.22738). Rows of the language are then scored exactly under three decoders of
the same network, K tokens a forward at the masks of the least entropy: one by one (K = 1), from the product of
marginals (the layer's gain at zero), and by the layer. KL and total variation are to the language, in nats a row;
beside them the closed form of a perfect network that draws K at a time from marginals. A second layer is
trained on random orders, with --on_policy a third one, which itself draws the tokens of that share of its windows.

The second table is of drafts that the network checks (`adjust_verified`): tokens a forward, which is of so many rows
more as there are drafts, and the p-value of a
chi-square test of the rows written against the exact law of one token a forward, where its rows can be enumerated.
"""

import argparse
import dataclasses
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

import mdlm_jax
from benchmarks.adaptation import train
from mdlm_jax.data.languages.registry import make
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.joint import JointSampler, silent
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.adjust_verified import AdjustVerified
from mdlm_jax.sampling.canvas import blank

LENGTHS = {"shuffle": 6, "replace": 8, "pairs": 12, "ring": 12, "parity": 6}
TOKENS = (2, 4)


def closed_form(name: str, each: int) -> float:
    """KL of a perfect network that draws ``each`` tokens at once from marginals; NaN where it depends on the order."""
    length = LENGTHS[name]
    if name == "shuffle":  # of m symbols left, k at a time
        left = range(length, 0, -each)
        return sum(min(each, m) * math.log(m) - math.log(math.perm(m, min(each, m))) for m in left)
    if name == "replace":
        return _replace(length, each)
    if name == "parity":  # the last group tells its parity, if it has two bits
        return math.log(2) if (length - 1) % each else 0.0
    return math.nan


def _replace(left: int, each: int) -> float:
    """One 1 among ``left`` places of which ``each`` are drawn at once: their total correlation, and what follows while
    the 1 has not been seen."""
    now = min(each, left)
    p = 1 / left
    single = -p * math.log(p) - ((1 - p) * math.log(1 - p) if p < 1 else 0.0)
    seen = now / left
    joint = -now * p * math.log(p) - ((1 - seen) * math.log(1 - seen) if seen < 1 else 0.0)
    return now * single - joint + ((1 - seen) * _replace(left - now, each) if seen < 1 else 0.0)


def network(folder: Path, name: str, length: int, seed: int, options, width: int = 32) -> Path:
    """The run of the network alone."""
    return train(folder / f"{name}_{seed}", "oracle", **{
        "data.source": f"language:{name}", "data.length": length, "data.seed": seed, "train.seed": seed,
        "model.layers": 2, "model.d_model": width, "model.heads": 2, "train.steps": options.steps,
        "train.checkpoint_every": options.steps, "eval.every": options.steps, "train.learning_rate": 3e-3,
        "train.batch_size": 64, "eval.final_rows": 512})


def models(folder: Path, name: str, length: int, seed: int, options, width: int = 32, given: int = 0,
           **fields) -> mdlm_jax.LanguageModel:
    """The network with its joint layer. ``given``: tokens at the beginning of a row that trajectories are given.
    ``fields``: of the layer's run, more than the usual ones."""
    base = network(folder, name, length, seed, options, width)
    written = folder / f"{name}_{seed}_trajectories"
    asked = []
    if given:
        rows = make(name).sample(np.random.default_rng(seed), options.trajectories, length)[:, :given]
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row.tolist()}) + "\n" for row in rows))
        asked = [f"--prompts={folder / 'prompts.jsonl'}"]
    subprocess.run([sys.executable, "-m", "launch.trajectories", *asked, f"--checkpoint={base}", f"--output={written}",
                    f"--num={options.trajectories}", f"--length={length}", f"--seed={seed}", "--batch_size=1024",
                    f"--suppress={','.join(map(str, beyond(name)))}"], check=True)
    kind = "_".join(["joint", *(f"{key.partition('.')[2]}={value}" for key, value in fields.items())])
    return mdlm_jax.load(train(folder / f"{name}_{seed}_{kind}", "joint", **{
        "train.init_from": base, "data.source": f"trajectories:{written}", "data.length": length, "data.seed": seed,
        "train.seed": seed, "train.steps": options.joint_steps, "train.checkpoint_every": options.joint_steps,
        "eval.every": options.joint_steps, "train.batch_size": 64, "train.any_order": 0.0} | fields))


def beyond(name: str) -> list[int]:
    """Ids of the tokenizer that the language has no use for, but for the mask."""
    tokenizer = LanguageTokenizer(make(name).vocab_size)
    return [i for i in range(make(name).vocab_size, tokenizer.vocab_size) if i != tokenizer.mask_id]


def rows_of(name: str, number: int) -> np.ndarray:
    return make(name).sample(np.random.default_rng(1234), number, LENGTHS[name])


def scored(model, name: str, rule, rows: np.ndarray) -> np.ndarray:
    """log q of the rows, nats."""
    mask_id, columns = model.process.mask_id, model.process.num_columns
    bias = jnp.zeros(columns).at[jnp.array(beyond(name))].set(-jnp.inf)
    return forced_log_prob(Denoiser(model.config, columns), model.params, blank(mask_id, *rows.shape), rows, rule,
                           steps=None, batch=1024, bias=bias)


def measured(model, name: str, options) -> dict[str, list[float]]:
    """Decoder -> KL and total variation to the language."""
    rows, mask_id = rows_of(name, options.rows), model.process.mask_id
    decoders = {"one by one": Adjust(mask_id=mask_id, tokens=1)}
    for each in TOKENS:
        decoders[f"marginal, {each}"] = Adjust(plain(model.joint), mask_id, each)
        decoders[f"ADJUST, {each}"] = Adjust(model.joint, mask_id, each)
    return {title: distances(model, name, rule, rows) for title, rule in decoders.items()}


def distances(model, name: str, rule, rows: np.ndarray) -> list[float]:
    """KL and total variation of the language to what ``rule`` writes."""
    found = distance(make(name).log_prob(rows), scored(model, name, rule, rows))
    return [found.kl, found.tv]


def varied(model, name: str, options, kind: str) -> dict[str, list[float]]:
    """`measured` of another layer's decoding alone."""
    rows = rows_of(name, options.rows)
    return {f"{kind}, {each}": distances(model, name, Adjust(model.joint, model.process.mask_id, each), rows)
            for each in TOKENS}


def plain(layer: JointSampler) -> JointSampler:
    """The layer as it is before training: it says nothing, and tokens come from marginals."""
    return dataclasses.replace(layer, params=silent(layer.params))


def verified(model, name: str, options) -> dict[str, list[float]]:
    """Drafts -> tokens a forward with the layer's drafts and with those of marginals, and the p-value of the law of the
    layer's; NaN where it cannot be enumerated."""
    mask_id, length, size = model.process.mask_id, LENGTHS[name], make(name).vocab_size
    law = None
    if size**length <= 1 << 16:
        every = np.array(list(itertools.product(range(size), repeat=length)), np.int32)
        law = np.exp(scored(model, name, Adjust(mask_id=mask_id, tokens=1), every))
    found = {}
    for drafts in range(1, model.joint.most):
        speed, rows = [], None
        for layer in (plain(model.joint), model.joint):
            answers = model.generate([np.zeros(0, np.int32)] * options.rows, new_tokens=length, max_length=length,
                                     decoder=AdjustVerified(layer, mask_id, drafts), stop_id=None, seed=3,
                                     suppress=beyond(name), batch_size=1024)
            speed.append(length / float(np.mean([one.forwards for one in answers])))
            rows = np.stack([one.row for one in answers])
        found[str(drafts)] = [speed[1], speed[0], math.nan if law is None else p_value(rows, law, size)]
    return found


def p_value(rows: np.ndarray, law: np.ndarray, size: int) -> float:
    """Of Pearson's chi-square; the rarest cells are one, which is expected five times at least."""
    counts = np.bincount(np.ravel_multi_index(tuple(rows.T), (size,) * rows.shape[1]), minlength=len(law))
    order = np.argsort(law)
    seen, wanted = counts[order], len(rows) * law[order] / law.sum()
    rare = max((wanted < 5).sum(), np.searchsorted(np.cumsum(wanted), 5) + 1)
    seen, wanted = (np.append(x[rare:], x[:rare].sum()) for x in (seen, wanted))
    return float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1))


def kept(file: Path, work) -> dict:
    """What is in the file, or what ``work`` finds, which is then in it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(work(), indent=1) + "\n")
    return json.loads(file.read_text())


def results(options, name: str, seed: int) -> tuple[dict, dict]:
    """`measured`, of the other layers too; `verified`, of the one that saw random orders."""
    def model(**fields):
        return models(options.workdir, name, LENGTHS[name], seed, options, **fields)

    found = kept(options.workdir / f"{name}_{seed}.json", lambda: measured(model(), name, options))
    others = {"any order": {"train.any_order": 1.0}}
    if options.on_policy:
        others["on policy"] = {"train.on_policy": options.on_policy}
    for kind, fields in others.items():
        file = options.workdir / f"{name}_{seed}_{kind.replace(' ', '_')}.json"
        found |= kept(file, lambda kind=kind, fields=fields: varied(model(**fields), name, options, f"ADJUST, {kind}"))
    return found, kept(options.workdir / f"{name}_{seed}_verified.json",
                       lambda: verified(model(**others["any order"]), name, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the network")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--joint_steps", type=int, default=2500)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--on_policy", type=float, default=0.0, help="also a layer with this share of its own tokens")
    options = parser.parse_args()
    print("| language | decoder | KL | TV | closed form |\n|---|---|---|---|---|", flush=True)
    checked = {}
    for name in options.languages:
        both = [results(options, name, seed) for seed in options.seeds]
        checked[name] = [one[1] for one in both]
        for title in both[0][0]:
            (kl, kl_error), (tv, tv_error) = means([one[0][title] for one in both])
            form = closed_form(name, int(title.partition(", ")[2])) if title.startswith("marginal") else math.nan
            print(f"| {name} | {title} | {kl:.3f} +- {kl_error:.3f} | {tv:.3f} +- {tv_error:.3f} | "
                  f"{'' if math.isnan(form) else f'{form:.3f}'} |", flush=True)
    print("\n| language | drafts | tokens a forward | drafts of marginals | p-values |\n|---|---|---|---|---|")
    for name, found in checked.items():
        for drafts in found[0]:
            (speed, error), (apart, apart_error), _ = means([one[drafts] for one in found])
            values = ", ".join(f"{one[drafts][2]:.3f}" for one in found)
            print(f"| {name} | {drafts} | {speed:.2f} +- {error:.2f} | {apart:.2f} +- {apart_error:.2f} | {values} |")


def means(values: list[list[float]]) -> list[tuple[float, float]]:
    """Mean and standard error over seeds of each figure."""
    values = np.array(values)
    errors = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1], np.nan)
    return list(zip(values.mean(0), errors, strict=True))


if __name__ == "__main__":
    main()
