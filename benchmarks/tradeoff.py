"""Quality against forwards for every decoder: ``python -m benchmarks.tradeoff --workdir=DIR [--figure=PNG] ...``.

``DIR`` is a masked run on an oracle language, whose exact law p judges the rows x ~ q of each decoder:

    cross-entropy   E_q[-log p(x)] / L, nats a token: as low as the entropy of p, or lower where q keeps to the likely
    KL(p || q)      E_p[log p(x) - log q(x)] / L, exact log q by forced tokens, where the decoder can be scored so
    TV(p, q)        E_p[(1 - q / p)_+]

and, since low cross-entropy alone may mean dull rows, the entropy of the tokens of a row. Everything is drawn at
temperature 1; ids that the language does not have are never drawn. Forwards are the mean over rows of those that each
row needed, divided by its length.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import mdlm_jax
from mdlm_jax.config import freeze
from mdlm_jax.core.process import Process
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.evaluation.scoring import distance, forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.block_threshold import BlockThreshold
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.draft_edit import DraftEdit
from mdlm_jax.sampling.dream import Dream
from mdlm_jax.sampling.entropy_bound import EntropyBound
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.sampling.klass import KLASS
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.margin import Margin
from mdlm_jax.sampling.p2 import P2
from mdlm_jax.sampling.remdm import ReMDMCap, ReMDMConf, ReMDMLoop, ReMDMRescale
from mdlm_jax.sampling.threshold import Factor, Threshold


@dataclasses.dataclass(frozen=True)
class Run:
    """One point: a decoder, what its dial says, steps of the canvas, and further options of the call."""

    family: str
    dial: str
    decoder: Decoder
    steps: int | None
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained network and the language it was trained on."""

    denoise: Denoiser
    params: Any
    process: Process
    language: Any
    length: int
    bias: Any


def runs(process: Process, length: int, steps: list[int], block: int) -> Iterator[Run]:
    """Every decoder with a few values of its dial."""
    mask = process.mask_id

    def quota(family: str, decoder: Decoder, counts=tuple(steps), **options) -> Iterator[Run]:
        for count in counts:
            yield Run(family, f"{count} steps", decoder, count, options)

    def dialled(family: str, make_one: Callable, values, name: str, **options) -> Iterator[Run]:
        for value in values:
            yield Run(family, f"{name} {value:g}", make_one(value), length, options)

    yield from quota("ancestral", Ancestral(process, reuse=True), [*steps, 4 * length])
    yield from quota("first hitting", FirstHitting(process, parallel=True))
    yield Run("first hitting", "one by one", FirstHitting(process), length)
    yield from quota("first hitting, second order", FirstHitting(process, parallel=True, second="correct"), steps[:-1])
    for name, decoder in (("cap", ReMDMCap(process)), ("rescale", ReMDMRescale(process)), ("conf", ReMDMConf(process)),
                          ("loop", ReMDMLoop(process))):
        yield from quota(f"ReMDM {name}", decoder, [*steps, 2 * length])
    yield from quota("P2 self", P2(process), [*steps, 2 * length])
    yield from quota("random", LowConfidence(mask, 1.0, remasking="random"))
    yield from quota("LLaDA (by the draw)", LowConfidence(mask, 1.0))
    yield from quota(f"LLaDA, blocks of {block}", LowConfidence(mask, 1.0), [s for s in steps if s >= length // block],
                     block_length=block)
    yield from quota("top probability", LowConfidence(mask, 1.0, remasking="top"))
    yield from quota("margin", Margin(mask, 1.0))
    yield from quota("Dream entropy", Dream(mask, 1.0))
    yield from quota("Dream maskgit_plus", Dream(mask, 1.0, algorithm="maskgit_plus"))
    yield from dialled("threshold", lambda v: Threshold(mask, 1.0, threshold=v), (0.3, 0.5, 0.7, 0.9, 0.97), "")
    yield from dialled("factor", lambda v: Factor(mask, 1.0, factor=v), (0.25, 0.5, 1.0, 2.0, 4.0), "")
    yield from dialled("entropy bound", lambda v: EntropyBound(mask, 1.0, gamma=v), (0.01, 0.1, 0.5, 1.0, 2.0, 4.0), "")
    yield from dialled("KLASS", lambda v: KLASS(mask, 1.0, threshold=v), (0.4, 0.6, 0.9), "")
    yield from dialled(f"LLaDA2.0, blocks of {block}", lambda v: BlockThreshold(mask, 1.0, threshold=v),
                       (0.5, 0.7, 0.95), "", block_length=block)
    for mode in ("quality", "speedy"):
        yield Run(f"LLaDA2.1 {mode}", f"blocks of {block}", JointThreshold.mode(mode, mask, temperature=1.0), None,
                  {"block_length": block})
    yield from quota("draft and edit", DraftEdit(mask, 0.1, temperature=1.0))


def read(workdir: Path) -> Subject:
    model, config = mdlm_jax.load(workdir), freeze(json.loads((workdir / "config.json").read_text()))
    language = make(config.data.source.partition(":")[2])
    size = model.process.vocab_size
    bias = np.where(np.arange(size) < language.vocab_size, 0.0, -np.inf)
    denoise = Denoiser(model.config, size, model.process)
    return Subject(denoise, model.params, model.process, language, config.data.length, jnp.asarray(bias, jnp.float32))


def sample(subject: Subject, run: Run, rows: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, L] and the forwards of each."""
    found = [decode(subject.denoise, subject.params, blank(subject.process.mask_id, batch, subject.length,
                                                           first_row=first),
                    run.decoder, steps=run.steps, bias=subject.bias, **run.options) for first in range(0, rows, batch)]
    return (np.concatenate([np.asarray(x.tokens) for x in found]),
            np.concatenate([np.asarray(x.forwards) for x in found]))


def score(subject: Subject, run: Run, tokens: np.ndarray, batch: int) -> np.ndarray:
    """log q of rows, nats."""
    canvas = blank(subject.process.mask_id, len(tokens), subject.length)
    return forced_log_prob(subject.denoise, subject.params, canvas, tokens, run.decoder, steps=run.steps, batch=batch,
                           bias=subject.bias, **run.options)


def measure(subject: Subject, run: Run, natural: np.ndarray, rows: int, batch: int) -> dict:
    """One line of the table."""
    length, language = subject.length, subject.language
    tokens, forwards = sample(subject, run, rows, batch)
    nats = -language.log_prob(tokens) / length
    line = {"family": run.family, "dial": run.dial, "forwards": float(forwards.mean() / length),
            "cross_entropy": mean(nats), "row_entropy": mean(unigram_entropy(tokens, language.vocab_size))}
    if run.decoder.scorable:
        apart = distance(language.log_prob(natural), score(subject, run, natural, batch))
        line |= {"kl": (apart.kl / length, apart.kl_stderr / length), "tv": (apart.tv, apart.tv_stderr)}
    return line


def mean(values: np.ndarray) -> tuple[float, float]:
    """With its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def show(line: dict) -> None:
    cells = [f"{line[name][0]:.3f} +- {line[name][1]:.3f}" if name in line else "" for name in
             ("cross_entropy", "row_entropy", "kl", "tv")]
    print(f"| {line['family']} | {line['dial']} | {line['forwards']:.3f} | " + " | ".join(cells) + " |", flush=True)


def draw(lines: list[dict], entropy: float, path: Path) -> None:
    """Two panels over forwards a token: cross-entropy of all, and KL of those that can be scored."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(15, 6.5), constrained_layout=True)
    families = list(dict.fromkeys(line["family"] for line in lines))
    colours = plt.get_cmap("tab20")
    for panel, name in zip(panels, ("cross_entropy", "kl"), strict=True):
        for number, family in enumerate(families):
            own = sorted((line for line in lines if line["family"] == family and name in line),
                         key=lambda line: line["forwards"])
            if own:
                panel.errorbar([x["forwards"] for x in own], [x[name][0] for x in own], [x[name][1] for x in own],
                               label=family, color=colours(number % 20), marker="osv^D"[number // 5 % 5],
                               linestyle="--" if number >= 20 else "-", markersize=5, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("forwards a token")
        panel.grid(alpha=0.3)
    panels[0].axhline(entropy, color="black", linewidth=1, linestyle=":", label="entropy of the language")
    panels[0].set_ylabel("exact cross-entropy of samples, nats a token")
    panels[1].set_ylabel("KL(language || decoder), nats a token")
    panels[1].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a masked run on language:NAME")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="of decoders with a quota")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--rows", type=int, default=512, help="sampled, and of the language where q is scored")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of decoders to run")
    parser.add_argument("--figure", type=Path, default=None, help="PNG to write")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    subject = read(options.workdir)
    natural = subject.language.sample(np.random.default_rng(7), options.rows, subject.length)
    truth = {"family": "the language itself", "dial": "", "forwards": 0.0,
             "cross_entropy": mean(-subject.language.log_prob(natural) / subject.length),
             "row_entropy": mean(unigram_entropy(natural, subject.language.vocab_size))}
    print(f"{options.rows} rows of {subject.length}, nats\n| decoder | | forwards a token | cross-entropy a token | "
          "row entropy | KL(p, q) a token | TV |\n|---|---|---|---|---|---|---|", flush=True)
    show(truth)
    lines = []
    for run in runs(subject.process, subject.length, options.steps, options.block):
        if not options.only or any(part in run.family for part in options.only):
            lines.append(measure(subject, run, natural, options.rows, options.batch))
            show(lines[-1])
            if options.json is not None:  # as far as it has come
                options.json.write_text(json.dumps({"language": truth, "lines": lines}, indent=1) + "\n")
    if options.figure is not None:
        draw(lines, truth["cross_entropy"][0], options.figure)


if __name__ == "__main__":
    main()
