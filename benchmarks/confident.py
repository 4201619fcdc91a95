"""What certainty and self-correction buy: ``python -m benchmarks.confident --workdir=DIR [--seeds 0 1 2]``.

On tasks with a prompt whose answers hang together more or less (waiting lines, `languages.lines`; Latin squares,
without one) a masked network is trained, writes rows one token a forward, and goes on training on them:

    dParallel   the answer is one active block (arXiv 2509.26488), on rows that were drawn, and on greedy ones
    DMax        its own predictions in place of masks (arXiv 2604.08302), likewise

Printed of every network under every decoder, over whole answers: right answers and tokens a forward at temperature 0;
the same of draws at temperature 1, their entropy given the prompt, and the exact KL from the language's law to the
decoder's where it has one (`sampling.decoder.Decoder.scorable`), in nats an answer. "Right" is what the language can
say; the language's own entropy stands beside its name. Means over seeds, with standard errors where there are several.
A task and seed take about seven minutes of a core; --tasks names others than the usual two.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import beyond, kept
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.entropy_bound import EntropyBound
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.soft_parallel import SoftParallel
from mdlm_jax.sampling.threshold import Threshold

TASKS = ("line_copy", "line_replace", "line_shuffle", "latin")
PROMPTS, DRAWS = 8, 256  # of the entropy: prompts, and answers to each
HEADS = ("right", "tokens a forward", "right, drawn", "tokens a forward, drawn", "entropy", "KL")


def base(options, name: str, seed: int) -> Path:
    return train(options.workdir / f"{name}_{seed}", "oracle", **_data(name, seed), **_steps(options.steps), **{
        "model.layers": 2, "model.d_model": 64, "model.heads": 2, "train.learning_rate": 3e-3})


def written(options, name: str, seed: int, temperature: float) -> Path:
    """Rows of the network's own, behind the language's prompts."""
    language, folder = make(name), options.workdir / f"{name}_{seed}_rows_{temperature:g}"
    asked = []
    if language.given:
        file = options.workdir / f"{name}_{seed}_prompts.jsonl"
        rows = language.sample(np.random.default_rng(seed), options.trajectories, language.length)
        file.write_text("".join(json.dumps({"prompt": row[: language.given].tolist()}) + "\n" for row in rows))
        asked = [f"--prompts={file}"]
    subprocess.run([sys.executable, "-m", "launch.trajectories", *asked, f"--output={folder}", f"--seed={seed}",
                    f"--checkpoint={base(options, name, seed)}", f"--num={options.trajectories}", "--batch_size=1024",
                    f"--length={language.length}", f"--temperature={temperature}",
                    f"--suppress={','.join(map(str, beyond(name)))}"], check=True)
    return folder


def networks(options, name: str, seed: int) -> dict[str, Path]:
    found = {"before": base(options, name, seed)}
    kinds = {"dParallel": ("dparallel", {"train.objective": f"dparallel:{make(name).length},{options.beta},0.5"}),
             "DMax": ("dmax", {"train.objective": f"dmax:1,1,{options.own_temperature}"})}
    for temperature, rows in ((1.0, ""), (0.0, ", greedy rows")):
        folder = written(options, name, seed, temperature)
        for kind, (config, fields) in kinds.items():
            found[kind + rows] = train(
                options.workdir / f"{name}_{seed}_{config}_{temperature:g}", config, **_data(name, seed) | {
                    "data.source": f"trajectories:{folder}", "train.init_from": found["before"]},
                **_steps(options.more), **fields)
    return found


def _data(name: str, seed: int) -> dict:
    return {"data.source": f"language:{name}", "data.length": make(name).length, "data.seed": seed, "train.seed": seed,
            "train.batch_size": 64, "eval.final_rows": 256, "sample.num": 1}


def _steps(number: int) -> dict:
    return {"train.steps": number, "train.checkpoint_every": number, "eval.every": number}


def rules(model) -> dict[str, object]:
    """Decoders at temperature 1, by their setting."""
    mask_id, table = model.process.mask_id, model.params["embedding"]
    return {
        **{f"low_confidence, {each} a step": LowConfidence(mask_id, temperature=1.0) for each in (1, 2)},
        **{f"threshold {t}": Threshold(mask_id, temperature=1.0, threshold=t) for t in (0.9, 0.5)},
        **{f"entropy_bound {g}": EntropyBound(mask_id, temperature=1.0, gamma=g) for g in (0.1, 1.0)},
        **{f"soft_parallel {t}": SoftParallel(mask_id, table, t, temperature=1.0) for t in (0.5, 0.0)},
        "soft_parallel 0.0, hard": SoftParallel(mask_id, table, 0.0, blend=0, temperature=1.0),
    }


def asked(name: str, prompts: int, each: int) -> np.ndarray:
    """[prompts * each, L]: rows with -1 behind the prompt."""
    language = make(name)
    rows = language.sample(np.random.default_rng(77), prompts, language.length)
    rows[:, language.given :] = -1
    return np.repeat(rows, each, axis=0)


def answers(model, name: str, setting: str, rule, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The finished rows, and tokens a forward."""
    size = int((rows[0] < 0).sum())
    steps = {}
    if rule.reads_steps:
        each = int(setting.split()[1]) if setting.startswith("low_confidence") else 1
        steps = {"steps": -(-size // each)}
    found = model.infill(list(np.where(rows < 0, model.process.mask_id, rows)), decoder=rule, seed=5, **steps,
                         suppress=tuple(beyond(name)), batch_size=len(rows))
    return np.stack([one.row for one in found]), float(np.mean([size / one.forwards for one in found]))


def measured(options, name: str, seed: int) -> dict[str, list[float | None]]:
    """Network and decoder -> `HEADS`; kept in the networks' folders."""
    found = {}
    for kind, folder in networks(options, name, seed).items():
        figures = kept(folder / "confident.json", lambda folder=folder: _figures(mdlm_jax.load(folder), name))
        found |= {f"{kind} | {setting}": values for setting, values in figures.items()}
    return found


def _figures(model, name: str) -> dict[str, list[float | None]]:
    found, language = {}, make(name)
    for setting, rule in rules(model).items():
        greedy, speed = answers(model, name, setting, dataclasses.replace(rule, temperature=0.0),
                                asked(name, PROMPTS * DRAWS, 1))
        drawn, drawn_speed = answers(model, name, setting, rule, asked(name, PROMPTS, DRAWS))
        found[setting] = [_right(language, greedy), speed, _right(language, drawn), drawn_speed, _entropy(drawn),
                          _kl(model, name, rule) if rule.scorable else None]
        print(f"{name}: {setting}: {found[setting]}", flush=True)
    return found


def _right(language, rows: np.ndarray) -> float:
    return float(np.isfinite(language.log_prob(np.minimum(rows, language.vocab_size - 1))).mean())


def _entropy(rows: np.ndarray) -> float:
    """Of the answers to a prompt, nats, from counts (Miller and Madow's correction), the mean over prompts."""
    found = []
    for part in rows.reshape(PROMPTS, DRAWS, -1):
        counts = np.unique(part, axis=0, return_counts=True)[1]
        found.append(-(counts / DRAWS * np.log(counts / DRAWS)).sum() + (len(counts) - 1) / (2 * DRAWS))
    return float(np.mean(found))


def _kl(model, name: str, rule) -> float:
    """KL from the language's answers to the decoder's, given the prompt; nats an answer."""
    language, columns = make(name), model.process.num_columns
    rows = language.sample(np.random.default_rng(78), 2048, language.length)
    prompts = (language.rows[:, None, : language.given] == rows[None, :, : language.given]).all(-1)
    log_p = language.log_prob(rows) - np.log(language.law @ prompts)
    editable = np.broadcast_to(np.arange(language.length) >= language.given, rows.shape)
    bias = jnp.zeros(columns).at[jnp.array(beyond(name))].set(-jnp.inf)
    blank = canvas(np.where(editable, model.process.mask_id, rows), editable)
    log_q = forced_log_prob(Denoiser(model.config, columns), model.params, blank, rows, rule, batch=2048, bias=bias,
                            steps=language.length - language.given)
    return distance(log_p, log_q).kl


def table(name: str, found: list[dict]) -> None:
    language = make(name)
    law = np.bincount(np.unique(language.rows[:, : language.given], axis=0, return_inverse=True)[1].reshape(-1),
                      language.law)
    entropy = language.entropy(language.length).value + (law * np.log(law)).sum()
    print(f"\n{name}: {language.length - language.given} tokens, entropy {entropy:.3f} nats an answer, C "
          f"{language.correlation():.3f}\n\n| network | decoder | {' | '.join(HEADS)} |\n{'|---' * (len(HEADS) + 2)}|")
    for title in found[0]:
        values = np.array([[np.nan if x is None else x for x in one[title]] for one in found], float)
        error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(len(HEADS), np.nan)
        cells = ["" if np.isnan(m) else f"{m:.3f}" + ("" if np.isnan(e) else f" +- {e:.3f}")
                 for m, e in zip(values.mean(0), error, strict=True)]
        print(f"| {title} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["line_copy", "line_shuffle"], choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the network")
    parser.add_argument("--more", type=int, default=1000, help="of training on its own rows")
    parser.add_argument("--trajectories", type=int, default=8192)
    parser.add_argument("--beta", type=float, default=2.0, help="dParallel's weight of the entropy")
    parser.add_argument("--own_temperature", type=float, default=0.0, help="of the predictions that DMax is shown")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    found = {name: [measured(options, name, seed) for seed in options.seeds] for name in options.tasks}
    for name, seeds in found.items():
        table(name, seeds)


if __name__ == "__main__":
    main()
