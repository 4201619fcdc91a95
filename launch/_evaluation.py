"""The record of an evaluation: evaluation.json, written part by part, so that a command that was stopped goes on.

A part stands under its section and name with the settings that made it; with the same settings it is not made again,
with others it is made anew. A record of another checkpoint is not continued.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError
from mdlm_jax.training.manifest import write_atomically

NAME = "evaluation.json"
SECTIONS = ("likelihood", "generation")


class Record:
    """``model``: what says which weights these are; ``path``: of the file."""

    def __init__(self, path: Path, model: dict[str, Any]):
        self.path, self.model = path, model
        self.content: dict[str, Any] = {"model": model} | {section: {} for section in SECTIONS}
        if path.exists():
            found = read(path)
            if found["model"] == model:
                self.content = found

    def part(self, section: str, name: str, settings: dict[str, Any], make: Callable[[], dict]) -> dict:
        """The part of that name, made and written where it is not there with these settings."""
        settings = json.loads(json.dumps(settings))  # as the file gives it back
        found = self.content[section].get(name)
        if found is None or found["settings"] != settings:
            found = {"settings": settings} | make()
            self.content[section][name] = found
            write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
        return found


def read(path: Path) -> dict[str, Any]:
    """The content of an evaluation.json. ConfigError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"model", *SECTIONS} <= set(found):
        raise ConfigError(f"{path}: is no record of launch.evaluate; move it away")
    return found


def table(content: dict[str, Any]) -> str:
    """The record in words."""
    return "\n".join([*_likelihood_lines(content["likelihood"]), *_generation_lines(content["generation"])])


def _likelihood_lines(parts: dict) -> list[str]:
    if not parts:
        return []
    width = max(map(len, parts))
    lines = [f"{'likelihood':<{width}}  {'':<22} {'nats a token':<19} {'perplexity':>10}   bits per byte"]
    for name, part in parts.items():
        kinds = {"exact" if part["exact"] else "true bound": part["bound"]}
        kinds |= {"published convention": part["published"]} if "published" in part else {}
        for kind, figures in kinds.items():
            bits = _pair(figures["bits_per_byte"]) if "bits_per_byte" in figures else ""
            lines.append(f"{name:<{width}}  {kind:<22} {_pair(figures['nats']):<19} {figures['perplexity']:>10.3f}   "
                         f"{bits}".rstrip())
            name = ""
    return lines


def _generation_lines(parts: dict) -> list[str]:
    if not parts:
        return []
    judges = list(dict.fromkeys(judge for part in parts.values() for judge in part["cross_entropy"]))
    width = max(map(len, parts))
    heads = "".join(f" {'cross-entropy, ' + judge:<26}" for judge in judges)
    lines = ["", f"{'steps':>{width}}  forwards  {'entropy of a row':<19}{heads}"]
    for name in sorted(parts, key=_by_steps):
        part = parts[name]
        scored = "".join(f" {_pair(part['cross_entropy'][judge]) if judge in part['cross_entropy'] else '':<26}"
                         for judge in judges)
        forwards = f"{part['forwards']:.1f}" if "forwards" in part else ""
        lines.append(f"{name:>{width}}  {forwards:>8}  {_pair(part['entropy']):<19}{scored}".rstrip())
    return lines


def _by_steps(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 60, name)


def _pair(value: list[float]) -> str:
    return f"{value[0]:.4f} +- {value[1]:.4f}"
