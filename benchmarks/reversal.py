"""The reversal curse: ``python -m benchmarks.reversal --data=FOLDER --workdir=DIR``.

A masked model and its autoregressive twin (configs/reversal.py: same network, same updates) learn facts about invented
people, some told only name first and some only description first (Berglund et al., arXiv 2309.12288: the folder holds
its files). Both are then asked the way they were told and the other way round, by launch.tasks with the task match:

    name to description, same way       p2d_prompts_test            reversed    d2p_reverse_prompts_test
    description to name, same way       d2p_prompts_test            reversed    p2d_reverse_prompts_test

The masked model decodes the surest token first, in 28 steps of one token each, greedily, with unsupervised guidance of
0.8 (SMDM's protocol, 2410.18514); the twin greedily. ``in place``: a fact in the words in which it was told, its name
or its description hidden, filled in by the masked model and right where every token is.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.adaptation import train

TRAIN = ("both_prompts_train", "d2p_prompts_train", "p2d_prompts_train")
ASKED = {
    "name to description, same way": "p2d_prompts_test",
    "name to description, reversed": "d2p_reverse_prompts_test",
    "description to name, same way": "d2p_prompts_test",
    "description to name, reversed": "p2d_reverse_prompts_test",
}
DECODING = {"masked": ("--decoder=low_confidence", "--temperature=0", "--steps=28", "--guidance=0.8"),
            "autoregressive": ("--temperature=0",)}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def check(data: Path) -> None:
    """SystemExit, naming the first, where files are missing."""
    for name in (*TRAIN, *ASKED.values()):
        if not (data / f"{name}.jsonl").is_file():
            raise SystemExit(f"error: --data={data}: holds no {name}.jsonl; give the folder with the files of the "
                             "reversal curse")


def joined(data: Path, workdir: Path) -> Path:
    """The three training files as one."""
    path = workdir / "all_prompts_train.jsonl"
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((data / f"{name}.jsonl").read_text(encoding="utf-8") for name in TRAIN), encoding="utf-8")
    return path


def asked(run: Path, family: str, name: str, data: Path, options) -> dict[str, float]:
    """Share of right answers, and BLEU, of one file."""
    output = run / ("tasks" if options.limit is None else f"tasks_{options.limit}") / name
    output.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "launch.tasks", f"--checkpoint={run}", "--task=match",
               f"--data={data / name}.jsonl", f"--output={output}", "--new_tokens=28", *DECODING[family]]
    if options.limit:
        command.append(f"--limit={options.limit}")
    subprocess.run(command, check=True)
    return {name: value for name, (value, _) in json.loads((output / "result.json").read_text())["figures"].items()}


def hidden(tokenizer, text: str, span: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The row of a fact, and which of its tokens hold ``span``; None where the text does not."""
    if span not in text:
        return None
    ids = tokenizer.encode(text)
    ends = np.cumsum(tokenizer.token_bytes(ids))
    begin = len(text[: text.index(span)].encode())
    inside = (ends > begin) & (ends - tokenizer.token_bytes(ids) < begin + len(span.encode()))
    return ids, inside


def in_place(model, facts: list[tuple[str, str]]) -> float:
    """Share of facts (text, what is hidden of it) that are filled in without a mistake."""
    rows = [found for text, span in facts if (found := hidden(model.tokenizer, text, span)) is not None]
    noisy = [np.where(inside, model.process.mask_id, ids) for ids, inside in rows]
    written = model.infill(noisy, decoder="low_confidence", temperature=0.0, batch_size=64)
    return float(np.mean([(one.row == ids).all() for one, (ids, _) in zip(written, rows, strict=True)]))


def facts(data: Path) -> dict[str, list[tuple[str, str]]]:
    """What was told, with what is to be hidden: names of facts told name first, descriptions of the others."""
    names = sorted({row["completion"].strip() for row in read(data / "p2d_reverse_prompts_test.jsonl")})
    first = [row["prompt"] + row["completion"] for row in read(data / "p2d_prompts_train.jsonl")]
    told = [row["prompt"] + row["completion"] for row in read(data / "d2p_prompts_train.jsonl")]
    descriptions = sorted({row["completion"].strip() for row in read(data / "d2p_reverse_prompts_test.jsonl")})
    spans = {"name hidden": (first, names), "description hidden": (told, [d.rstrip(".") for d in descriptions])}
    return {what: [(text, next((span for span in known if span in text), "")) for text in texts
                   if any(span in text for span in known)] for what, (texts, known) in spans.items()}


def measured(run: Path, family: str, options) -> dict[str, float]:
    """All figures of a run; kept in its workdir."""
    path = run / f"reversal_{options.limit or 'all'}.json"
    if path.exists():
        return json.loads(path.read_text())
    found = {}
    for what, name in ASKED.items():
        for figure, value in asked(run, family, name, options.data, options).items():
            found[f"{what}: {figure}"] = value
    if family == "masked":
        model = mdlm_jax.load(run)
        for what, told in facts(options.data).items():
            found[f"in place, {what}"] = in_place(model, told[:: max(1, len(told) // 200)])
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(results: dict[str, list[dict[str, float]]]) -> str:
    names = list(dict.fromkeys(name for seeds in results.values() for found in seeds for name in found))
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in names:
        cells = []
        for seeds in results.values():
            values = np.array([found[name] for found in seeds if name in found])
            error = f" +- {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{error}" if len(values) else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the published files")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8000, help="updates of both, 16 rows each")
    parser.add_argument("--limit", type=int, help="questions of every file, for a trial")
    options = parser.parse_args()
    check(options.data)
    source = joined(options.data, options.workdir)
    results: dict[str, list[dict[str, float]]] = {family: [] for family in DECODING}
    for seed in options.seeds:
        for family, found in results.items():
            run = train(options.workdir / f"{family}_{seed}", f"reversal:{family}", **{
                "data.source": source, "data.seed": seed, "train.seed": seed, "train.steps": options.steps})
            found.append(measured(run, family, options))
            print(table(results), flush=True)


if __name__ == "__main__":
    main()
