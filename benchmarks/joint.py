"""What several tokens a forward cost, and what ADJUST wins back: ``python -m benchmarks.joint --workdir=DIR``.

On five small oracle languages a network is trained, writes trajectories one token a forward, and a joint layer learns
to imitate it (`models.joint`, arXiv 2509.22738). Rows of the language are then scored exactly under three decoders of
the same network, K tokens a forward at the masks of the least entropy: one by one (K = 1), from the product of
marginals (the layer's gain at zero), and by the layer. KL and total variation are to the language, in nats a row;
beside them the closed form of a perfect network that draws K at a time from marginals.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from mdlm_jax.data.languages.registry import make
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.adjust import Adjust
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


def models(folder: Path, name: str, seed: int, options) -> mdlm_jax.LanguageModel:
    """The network with its joint layer."""
    length, source = LENGTHS[name], f"language:{name}"
    base = train(folder / f"{name}_{seed}", "oracle", **{
        "data.source": source, "data.length": length, "data.seed": seed, "train.seed": seed, "model.layers": 2,
        "model.d_model": 32, "model.heads": 2, "train.steps": options.steps, "train.checkpoint_every": options.steps,
        "eval.every": options.steps, "train.learning_rate": 3e-3, "train.batch_size": 64, "eval.final_rows": 512})
    written = folder / f"{name}_{seed}_trajectories"
    subprocess.run([sys.executable, "-m", "launch.trajectories", f"--checkpoint={base}", f"--output={written}",
                    f"--num={options.trajectories}", f"--length={length}", f"--seed={seed}", "--batch_size=1024",
                    f"--suppress={','.join(map(str, _beyond(name)))}"], check=True)
    joint = train(folder / f"{name}_{seed}_joint", "joint", **{
        "train.init_from": base, "data.source": f"trajectories:{written}", "data.length": length, "data.seed": seed,
        "train.seed": seed, "train.steps": options.joint_steps, "train.checkpoint_every": options.joint_steps,
        "eval.every": options.joint_steps, "train.batch_size": 64})
    return mdlm_jax.load(joint)


def _beyond(name: str) -> list[int]:
    """Ids of the tokenizer that the language has no use for, but for the mask."""
    tokenizer = LanguageTokenizer(make(name).vocab_size)
    return [i for i in range(make(name).vocab_size, tokenizer.vocab_size) if i != tokenizer.mask_id]


def measured(model, name: str, options) -> dict[str, list[float]]:
    """Decoder -> KL and total variation to the language."""
    language, length = make(name), LENGTHS[name]
    rows = language.sample(np.random.default_rng(1234), options.rows, length)
    log_p, mask_id = language.log_prob(rows), model.process.mask_id
    bias = jnp.zeros(model.process.num_columns).at[jnp.array(_beyond(name))].set(-jnp.inf)
    plain = dataclasses.replace(model.joint, params=model.joint.params | {
        "gain": jnp.zeros_like(model.joint.params["gain"])})
    decoders = {"one by one": Adjust(mask_id=mask_id, tokens=1)}
    for each in TOKENS:
        decoders[f"marginal, {each}"] = Adjust(plain, mask_id, each)
        decoders[f"ADJUST, {each}"] = Adjust(model.joint, mask_id, each)
    found = {}
    for title, decoder in decoders.items():
        log_q = forced_log_prob(Denoiser(model.config, model.process.num_columns), model.params,
                                blank(mask_id, options.rows, length), rows, decoder, steps=None, batch=1024, bias=bias)
        one = distance(log_p, log_q)
        found[title] = [one.kl, one.tv]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the network")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--joint_steps", type=int, default=2500)
    parser.add_argument("--rows", type=int, default=8192)
    options = parser.parse_args()
    print("| language | decoder | KL | TV | closed form |\n|---|---|---|---|---|", flush=True)
    for name in options.languages:
        found = []
        for seed in options.seeds:
            file = options.workdir / f"{name}_{seed}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(measured(models(options.workdir, name, seed, options), name, options)))
            found.append(json.loads(file.read_text()))
        for title in found[0]:
            values = np.array([one[title] for one in found])
            errors = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else [math.nan] * 2
            form = closed_form(name, int(title.partition(", ")[2])) if title.startswith("marginal") else math.nan
            print("| {} | {} | {:.3f} +- {:.3f} | {:.3f} +- {:.3f} | {} |".format(
                name, title, values[:, 0].mean(), errors[0], values[:, 1].mean(), errors[1],
                "" if math.isnan(form) else f"{form:.3f}"), flush=True)


if __name__ == "__main__":
    main()
