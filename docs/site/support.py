"""What goes with what, found by asking: objectives by network and noise, decoders by network and cache.

Nothing is kept by hand but what an objective needs beside its name. Every pair is put to the checks that a user's call
meets before anything is compiled, with tiny networks of which only the shapes exist. ``python -m docs.site.support``
writes the tables into README.md; a test compares them.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mdlm_jax.config import OBJECTIVES, ConfigError, RunConfig, freeze
from mdlm_jax.config.objectives import check_training
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.generation import generate
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models.config import ATTENTIONS, TransformerConfig
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.sampling import caching, registry
from mdlm_jax.training.beside import taken
from mdlm_jax.training.build import build_network, build_objective, build_process

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- {} of docs/site/support.py -->\n", "<!-- end of {} -->\n"
Fields = Mapping[str, Any]

TINY = {"model.layers": 1, "model.d_model": 8, "model.heads": 2, "data.length": 32}
NETWORKS = tuple(name for name in ATTENTIONS if name != "two_stream")  # which no run asks for
OF_NETWORK: dict[str, Fields] = {  # what a contract needs
    "bidirectional": {}, "causal": {"model.logit_shift": True}, "block_causal": {"model.block_length": 8},
    "permutation": {},
}
OF_OBJECTIVE: dict[str, Fields] = {  # what an objective needs
    "joint": {"data.source": "trajectories:x"}, "maria": {"train.twin": "x"}, "di4c": {"model.latent": 4},
    "levenshtein": {"model.head_size": 13},
}
STARTED = ("joint", "planner", "prism", "codd", "maria", "sdtt", "duo", "di4c")  # from train.init_from
NOISES: dict[str, Fields] = {"masks": {}, "mixed": {"process.mixing": 0.1}, "uniform": {"process.mixing": 1.0},
                             "GIDD": {"process.family": "gidd"}}
# What is decoded, and how it is trained.
MODELS: dict[str, Fields] = {
    "bidirectional": {},
    "shifted (Dream)": {"model.logit_shift": True},
    "reads the time": {"model.conditioning": "time"},
    "mixed noise": NOISES["mixed"],
    "block_causal": {"model.attention": "block_causal", "model.block_length": 8, "train.objective": "block"},
    "causal": {"model.attention": "causal", "model.logit_shift": True, "train.objective": "autoregressive"},
    "permutation": {"model.attention": "permutation", "train.objective": "any_order"},
    "mixture (Di4C)": {"model.latent": 4, "train.objective": "di4c:8,4,0.1,1"},
}
TRAINED = {"prism": "prism:1", "adjust": "joint:3", "adjust_verified": "joint:3", "codd": "codd:4", "maria": "maria",
           "levenshtein": "levenshtein:1,2"}  # the objective whose run a decoder is for
LETTERS = {"none": "·", "prefix": "p", "dual": "d", "vicinity": "v", "dkv_decode": "k", "dkv_greedy": "g", "block": "b"}
IDS = LanguageTokenizer(8)


def config(fields: Fields) -> RunConfig:
    """A tiny run.

    Raises:
      ConfigError: one that the library refuses.
    """
    fields = TINY | fields
    objective = fields.get("train.objective", "nelbo").partition(":")[0]
    fields = {"train.init_from": "x"} | fields if objective in STARTED else fields
    nested: dict[str, dict[str, Any]] = {}
    for name, value in (OF_OBJECTIVE.get(objective, {}) | fields).items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    found = freeze(nested)
    check_training(found)
    return found


def objectives() -> Iterator[tuple[str, ...]]:
    """A line an objective: its form; by contract the noises that it takes."""
    for choice in OBJECTIVES.values():
        cells = []
        for network in NETWORKS:
            fields = {"train.objective": choice.example, "model.attention": network} | OF_NETWORK[network]
            noises = [noise for noise, more in NOISES.items() if takes(fields | more)]
            cells.append(", ".join(noises))
        yield f"`{choice.form}`", *cells


def takes(fields: Fields) -> bool:
    """Whether such a run is checked and built."""
    try:
        built(config(fields))
    except ConfigError:
        return False
    return True


def built(run: RunConfig) -> tuple[Any, TransformerConfig, TransformerConfig | None]:
    """The objective of a run, its network and its twin.

    Raises:
      ConfigError: what only the making of them refuses.
    """
    process, network = build_process(run, IDS.vocab_size, IDS.mask_id), build_network(run, IDS.vocab_size)
    twin = config(MODELS["causal"]).model.transformer(IDS.vocab_size) if run.train.twin else None
    return build_objective(run, network, process, 1, twin)[0], network, twin


@functools.cache
def model(name: str, objective: str) -> LanguageModel | None:
    """What such a run leaves, without weights; ``objective``: another than the model's own, or "". None where no run
    can be."""
    fields = MODELS[name] | ({"train.objective": objective} if objective else {})
    try:
        run = config(fields)
    except ConfigError:
        return None
    (objective_made, network, twin), process = built(run), build_process(run, IDS.vocab_size, IDS.mask_id)
    shapes = jax.eval_shape(objective_made.init, jax.random.key(0))
    edits = {}
    if objective.startswith("levenshtein"):
        edits = {"delete_id": network.head_size - 2, "insert_id": network.head_size - 1}
    described = Description(network, "", IDS.mask_id, None, IDS.eos_id, IDS.pad_id, run.data.length, **edits)
    return LanguageModel(shapes["network"], described, process, IDS,
                         **taken(run.train.objective, network, shapes, twin, IDS.mask_id))


def decoders() -> Iterator[tuple[str, ...]]:
    """A line a decoder: by model the caches that it takes."""
    for name in registry.DECODERS:
        yield f"`{name}`", *("".join(caches(name, one)) for one in MODELS)


def caches(decoder: str, name: str) -> Iterator[str]:
    """The letters of those with which a model of this kind answers by this decoder."""
    subject = model(name, TRAINED.get(decoder, ""))
    beside = {"twin": model("causal", "")} if decoder == "copula" else {}
    ways = [beside | {"block_length": length} for length in (None, 8)]
    if "remasking" in registry.entries()[decoder].numbers:
        ways.append({"block_length": 8, "remasking": "random"})
    for cache in caching.CACHES if subject else ():
        if any(accepted(subject, decoder=decoder, cache=cache, **way) for way in ways):
            yield LETTERS[cache]


def accepted(subject: LanguageModel, **options) -> bool:
    try:
        generate.answer_job(subject, [[1, 2, 3, 4, 5, 6, 7, 0]], 24, **options)
    except ConfigError:
        return False
    return True


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


TABLES = {
    "objectives": lambda: table(("objective", *NETWORKS), objectives()),
    "decoders": lambda: table(("decoder", *MODELS), decoders()),
}


def written(text: str) -> str:
    """``text`` with both tables as they are now.

    Raises:
      ValueError: it has no place for one.
    """
    for name, make in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise ValueError(f"{name}: README.md has no lines {begin.strip()} and {end.strip()}; put them back")
        text = before + begin + "\n" + make() + "\n" + end + rest.partition(end)[2]
    return text


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
