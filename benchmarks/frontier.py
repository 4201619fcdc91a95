"""Every decoder where writing several tokens at once is known to hurt: ``python -m benchmarks.frontier --workdir=DIR``.

Networks and joint layers of benchmarks.parallel (its --workdir, made where they are missing): waiting lines that are
copied, shuffled or have one person replaced, and Latin squares (ParallelBench, arXiv 2510.04767). All settings of
`evaluation.frontier` that fit such a network, at temperature 1, a prompt an item:

    right      the share of rows that the language can say
    KL         of the language to what is written, exact, nats an item, where a decoder's rows can be scored
    forwards   of the network, and rows it was run on, a token

Means over seeds with their standard errors. Whatever writes an item's tokens at once and each from its own law loses
the total correlation C in KL.
"""

import argparse
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks import parallel
from benchmarks.joint import beyond, kept
from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation import frontier
from mdlm_jax.evaluation.frontier import Setting
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.generation import generate
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.progress import Progress
from mdlm_jax.sampling.canvas import canvas

TASKS = ("line_copy", "line_shuffle", "line_replace", "latin")
Figures = dict[str, float | None]


def measured(model, name: str, setting: Setting, asked: np.ndarray) -> Figures | str:
    """Of a setting on the items ``asked`` [N, L], or why it does not fit the model."""
    tokens, holes = np.where(asked < 0, model.process.mask_id, asked), int((asked[0] < 0).sum())
    steps = setting.steps(holes, holes)
    try:
        job = generate.infill_job(model, list(tokens), "<mask>", decoder=setting.decoder, steps=steps, seed=5,
                                  suppress=tuple(beyond(name)), batch_size=len(asked), **setting.numbers)
    except ConfigError as error:
        return str(error)
    found = [one for _, one in sorted(generate.answers(job), key=lambda pair: pair[0])]
    rows, rule = np.stack([one.row for one in found]), job.sampler.decoder
    forwards = sum(one.forwards for one in found) / (asked < 0).sum()
    kl = exact(model, name, rule, steps, asked) if rule.scorable else None
    return {"right": float(np.isfinite(make(name).log_prob(rows)).mean()), "forwards": float(forwards),
            "work": float(forwards * generate.rows_a_forward(job)), "kl": kl}


def exact(model, name: str, rule, steps: int | None, asked: np.ndarray) -> float | None:
    """KL of the language, given the prompts, to the decoder, nats an item; None where it cannot give some row."""
    language, given = make(name), int((asked[0] >= 0).sum())
    rows = language.sample(np.random.default_rng(99), 1000, language.length)
    mask_id, columns = model.process.mask_id, model.process.num_columns
    editable = np.broadcast_to(np.arange(language.length) >= given, rows.shape)
    bias = jnp.zeros(columns).at[jnp.array(beyond(name))].set(-jnp.inf)
    log_q = forced_log_prob(Denoiser(model.config, columns), model.params,
                            canvas(np.where(editable, mask_id, rows), editable), rows, rule, steps=steps, batch=1000,
                            bias=bias)
    found = distance(language.log_prob(rows) - np.log(_prompts(language, rows[:, :given])), log_q).kl
    return found if math.isfinite(found) else None


def _prompts(language, prompts: np.ndarray) -> np.ndarray:
    """[N]: the probability of each prompt."""
    same = (language.rows[None, :, : prompts.shape[1]] == prompts[:, None]).all(-1)
    return same @ language.law


def of_seed(name: str, seed: int, options) -> dict[str, Figures | str]:
    """By the label of a setting."""
    told = argparse.Namespace(**vars(options) | {"seed": seed})
    model, asked = parallel.trained(name, told), parallel.items(name, options.items)
    tried = [setting for setting in frontier.settings(options.only, temperature=1.0)]
    found = {}
    with Progress(len(tried), desc=f"{name}, seed {seed}", unit="setting") as shown:
        for number, setting in enumerate(tried):
            found[setting.label] = measured(model, name, setting, asked)
            shown.update(number + 1)
    return found


def over_seeds(seeds: list[dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """Label -> figure -> mean and standard error; settings that fit, cheapest first."""
    found = {}
    for label, first in seeds[0].items():
        if isinstance(first, str):
            continue
        found[label] = {key: _mean([one[label][key] for one in seeds]) for key in first
                        if all(one[label][key] is not None for one in seeds)}
    if not found:
        raise SystemExit(f"no setting fits: {next(iter(seeds[0].values()))}")
    return dict(sorted(found.items(), key=lambda pair: pair[1]["work"][0]))


def _mean(values: list[float]) -> tuple[float, float]:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def best(found: dict) -> list[str]:
    """Labels that no other beats in both rows a token and right answers, beyond a hundredth."""
    edge, top = [], -1.0
    for label, one in found.items():
        if one["right"][0] > top + 0.01:
            edge, top = [*edge, label], one["right"][0]
    return edge


def report(name: str, found: dict, whole: bool) -> None:
    loss, edge = make(name).correlation(), best(found)
    for label in found if whole else edge:
        one = found[label]
        cells = [_said(one.get(key)) for key in ("forwards", "work", "right", "kl")]
        print(f"| {name} ({loss:.2f}) | {label.replace(', temperature 1', '')} | {' | '.join(cells)} |", flush=True)


def _said(value: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f}" if math.isnan(value[1]) else f"{value[0]:.3f} +- {value[1]:.3f}"


def draw(found: dict[str, dict], path: Path) -> None:
    """Right answers against rows of the network a token: a panel a task, a colour a decoder."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 4.6), dpi=130, layout="constrained")
    colours, names = matplotlib.colormaps["tab20"], list(frontier.DIALS)
    for axes, (name, settings) in zip(np.atleast_1d(figure.subplots(1, len(found), sharey=True)), found.items(),
                                      strict=True):
        for number, decoder in enumerate(names):
            own = [one for label, one in settings.items() if label.partition(",")[0] == decoder]
            if own:
                axes.plot([one["work"][0] for one in own], [one["right"][0] for one in own], "osv^D"[number // 5 % 5],
                          color=colours(number % 20), label=decoder, markersize=5)
        edge = [settings[label] for label in best(settings)]
        axes.plot([one["work"][0] for one in edge], [one["right"][0] for one in edge], color="black", linewidth=1,
                  zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_title(f"{name}, C = {make(name).correlation():.2f} nats")
        axes.set_xlabel("rows of the network a token")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("right answers")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(),
                                                                              strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="that of benchmarks.parallel will do")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=parallel.TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12000, help="of the network")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--joint_steps", type=int, default=2500)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--only", nargs="+", default=[], help="decoders; default: all")
    parser.add_argument("--whole", action="store_true", help="print all settings, not the frontier alone")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    found, only = {}, "_".join(["frontier", *options.only])
    for name in options.tasks:
        found[name] = over_seeds([
            kept(options.workdir / f"{name}_{seed}_{only}.json",
                 lambda name=name, seed=seed: of_seed(name, seed, options)) for seed in range(options.seeds)])
    print("| task (C in nats) | setting | forwards a token | rows a token | right | KL |\n|---|---|---|---|---|---|")
    for name, settings in found.items():
        report(name, settings, options.whole)
    if options.figure:
        draw(found, options.figure)
    print(json.dumps({name: len(settings) for name, settings in found.items()}))


if __name__ == "__main__":
    main()
