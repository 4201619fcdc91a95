"""Examples in docstrings give what they say. They run in a folder that holds ``runs/first``, a tiny model."""

import doctest
import importlib
from pathlib import Path

import pytest

from .folder import first_run

PACKAGE = Path(__file__).resolve().parents[2] / "mdlm_jax"
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
                 for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Where every road begins: load and what it gives, noise, decoding, scoring, languages, configurations.
WANTED = {"loading.load", "language_model.LanguageModel.logits", "language_model.LanguageModel.generate",
          "language_model.LanguageModel.infill", "language_model.LanguageModel.answer",
          "language_model.LanguageModel.score", "language_model.LanguageModel.log_likelihood",
          "core.process.Process.corrupt", "core.process.Process.reverse_step", "core.schedules.from_spec",
          "core.prediction.Prediction.from_logits", "sampling.loop.decode", "sampling.registry.make",
          "evaluation.scoring.forced_log_prob", "evaluation.scoring.distance", "data.languages.registry.make",
          "config.run.default_config", "config.run.freeze", "models.presets.get"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    first_run(folder)
    return folder


def examples(module: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_are_right(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = examples(module)
    said = []
    for test in found:
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert found and not said, "\n".join(said)


def test_the_functions_that_users_meet_first_have_examples():
    found = {test.name.removeprefix("mdlm_jax.") for module in MODULES for test in examples(module)}
    assert not WANTED - found
