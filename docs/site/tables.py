"""Tables of the reference, from the registries that the library itself goes by."""

import dataclasses
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from launch._configs import shipped
from launch._help import field_docs
from mdlm_jax import config
from mdlm_jax.config import RunConfig
from mdlm_jax.config.choices import Choice
from mdlm_jax.data.languages.registry import LANGUAGES
from mdlm_jax.models import presets
from mdlm_jax.models.hf.families import FAMILIES
from mdlm_jax.models.shapes import parameter_count
from mdlm_jax.sampling import caching, registry, windows
from mdlm_jax.sampling.grid import GRIDS
from mdlm_jax.tasks.registry import HELP

ROOT = Path(__file__).resolve().parents[2]


def table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(one_line(str(cell)) for cell in line) + " |" for line in lines) + "\n"


def one_line(words: str) -> str:
    """As a cell holds it; words that are neither code nor a link are taken literally."""
    words = " ".join(words.split()).replace("|", "\\|")
    return words if words.startswith(("`", "[`")) else words.replace("<", "&lt;").replace("[", "\\[")


def decoders() -> str:
    parts = ["# Decoders\n\n`decoder=` of `LanguageModel.generate`, `--decoder=` of the commands; the numbers are "
             "keywords and flags.\n"]
    for entry in registry.entries().values():
        module, cls, _ = registry.DECODERS[entry.name]
        goes = "Goes by `steps`." if entry.reads_steps else "Takes as many forwards as it needs."
        parts.append(f"## {entry.name}\n\n{entry.help.replace('<', '&lt;')} {goes} "
                     f"[Class {cls}](mdlm_jax/sampling/{module}.md)\n")
        parts.append(table(("number", "default", "what it is"),
                           ((f"`{name}`", _code(number.default), number.help)
                            for name, number in entry.numbers.items())))
    return "\n".join(parts)


def objectives() -> str:
    return ("# Objectives\n\n`train.objective`: what a run minimises. [README](../README.md) says which network each "
            "needs.\n\n" + _choices(config.OBJECTIVES))


def noise() -> str:
    of_process = [field.name for field in dataclasses.fields(config.ProcessConfig)]
    return "\n".join([
        "# Processes and schedules\n\nThe section `process` of a configuration says what the noise is: the share of "
        "uniform noise, the family, and how much noise there is at time t.\n", _fields("process", of_process),
        "## Schedules\n\n`process.schedule`\n", _choices(config.SCHEDULES),
        "## Levels\n\n`train.level_law`\n", _choices(config.LEVEL_LAWS),
        "## Samplings of time\n\n`train.time_sampling`\n", _choices(config.TIME_SAMPLINGS),
        "## Weightings\n\n`train.weighting`\n", _choices(config.WEIGHTINGS)])


def other_choices() -> str:
    shown = {"Optimizers": ("train.optimizer", config.OPTIMIZERS),
             "Learning rates": ("train.lr_schedule", config.LR_SCHEDULES),
             "Detokenizers": ("data.detokenizer", config.DETOKENIZERS),
             "Chat templates": ("data.chat_template", config.CHAT_TEMPLATES)}
    parts = [f"## {title}\n\n`{field}`\n\n{_choices(choices)}" for title, (field, choices) in shown.items()]
    return "# Other names that fields take\n\n" + "\n".join(parts)


def caches() -> str:
    return "\n".join([
        "# Caches and grids\n\n`cache=` and `grid=` of `LanguageModel.generate`, `--cache=` and `--grid=` of the "
        "commands. Numbers in brackets may be left out.\n", inspect.getdoc(windows) + "\n",
        table(("cache",), ((f"`{form}`",) for form in caching.FORMS)),
        "\nGrids, the times of a block's steps:\n", table(("grid",), ((f"`{name}`",) for name in GRIDS))])


def languages() -> str:
    rows = []
    for name, maker in LANGUAGES.items():
        settings = ",".join(f"{key}={p.default}" for key, p in inspect.signature(maker).parameters.items())
        told = sys.modules[maker.__self__.__module__] if maker.__name__ == "random" else maker
        rows.append((f"`{name}`", f"`{settings}`" if settings else "", inspect.getdoc(told).partition("\n")[0]))
    return ("# Languages\n\nLaws of rows whose log-probability is known exactly: `data.source=language:NAME`, or "
            "`language:NAME:KEY=VALUE,...`.\n\n" + table(("language", "settings", "what it is"), rows))


def configs() -> str:
    rows = ((f"`{name}`", about) for name, about in shipped().items())
    return "# Configs\n\n`--config=NAME` of `launch.train`.\n\n" + table(("config", "what it is"), rows)


def networks() -> str:
    rows = ((f"`{name}`", f"{parameter_count(network):,}", network.attention, network.layers, network.d_model)
            for name, network in presets.PRESETS.items())
    return ("# Networks\n\nFamilies of published checkpoints that `mdlm_jax.load` reads: "
            + ", ".join(f"`{name}`" for name in FAMILIES) + ".\n\n`models.presets.get(NAME)`:\n\n"
            + table(("preset", "parameters", "attention", "layers", "width"), rows))


def tasks() -> str:
    return ("# Tasks\n\n`--task=` of `launch.tasks`.\n\n"
            + table(("task", "what is asked, and the figures"), ((f"`{name}`", about) for name, about in HELP.items())))


def fields() -> str:
    parts = ["# Configuration fields\n\n`--config.SECTION.FIELD=VALUE` of `launch.train`, "
             "`config.SECTION.FIELD = VALUE` in a recipe.\n"]
    for section in dataclasses.fields(RunConfig):
        parts.append(f"## {section.name}\n\n{field_docs()[section.name]}\n")
        parts.append(_fields(section.name, [field.name for field in dataclasses.fields(section.default)]))
    return "\n".join(parts)


def commands() -> str:
    """What every console script says to ``--help``."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parts = ["# Commands\n\nWhat `--help` says. In a checkout the commands are `python -m launch.NAME`, installed "
             "`mdlm-NAME`.\n"]
    for where in scripts.values():
        module = where.partition(":")[0].removeprefix("mdlm_jax.").removesuffix(".__main__")
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True,
                              check=True)
        parts.append(f"## {module}\n\n```text\n{done.stdout.strip()}\n```\n")
    return "\n".join(parts)


def _choices(choices: dict[str, Choice]) -> str:
    return table(("form", "example", "meaning"), ((f"`{c.form}`", f"`{c.example}`", c.meaning)
                                                  for c in choices.values()))


def _fields(section: str, names: list[str]) -> str:
    default, docs = getattr(RunConfig(), section), field_docs()
    rows = ((f"`{section}.{name}`", _code(getattr(default, name)), docs[f"{section}.{name}"]) for name in names)
    return table(("field", "default", "what it is"), rows)


def _code(value) -> str:
    return "" if value is None or value == "" else f"`{value}`"


PAGES = [(f"reference/{name}.md", title, content) for name, title, content in (
    ("decoders", "Decoders", decoders), ("objectives", "Objectives", objectives), ("noise", "Noise", noise),
    ("choices", "Other names", other_choices), ("caches", "Caches and grids", caches),
    ("languages", "Languages", languages), ("configs", "Configs", configs), ("networks", "Networks", networks),
    ("tasks", "Tasks", tasks), ("fields", "Configuration fields", fields), ("commands", "Commands", commands))]
