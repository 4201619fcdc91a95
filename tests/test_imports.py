"""Importing costs little, and the arrows between the packages point one way."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mdlm_jax"
HEAVY = {"jax", "jaxlib", "numpy", "tensorflow", "torch", "tensorflow_datasets", "orbax", "transformers", "matplotlib"}
# What each part may import of mdlm_jax, besides itself. Everything but core may read the configuration.
MAY_IMPORT = {
    "core": set(),
    "data": {"config", "tasks"},  # the twins of tasks
    "models": {"core", "config", "errors"},
    "sampling": {"models", "core", "config"},
    "evaluation": {"sampling", "models", "core", "config"},
    "training": {"models", "data", "core", "config", "errors", "progress"},
    "planning": {"training", "sampling", "models", "config", "errors"},
    "config": {"errors", "models"},  # models.config alone, which is free of jax
    "errors": set(),
    "progress": {"errors"},
    "tasks": {"errors"},
    "generation": {"evaluation", "sampling", "models", "data", "core", "config", "errors", "progress"},
    "language_model": {"generation", "evaluation", "models", "core", "errors"},
    "harness": {"loading", "language_model", "training", "models", "config", "errors", "progress"},
    "loading": {"language_model", "training", "models", "data", "core", "config", "errors", "progress"},
}
THIRD_PARTY_OF_CORE = {"jax", "numpy"}


def files_of(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


def imported_names(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Dotted names of every import in a file, those inside functions too, or of those in ``tree``, a part of it."""
    tree = ast.parse(path.read_bytes()) if tree is None else tree
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported_names(path) if name.startswith("mdlm_jax.")}


def run_python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_every_part_has_its_rule():
    in_wheels = {"configs", "launch"}  # which stand beside the package in a checkout
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - in_wheels
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | modules == set(MAY_IMPORT)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_one_way(part):
    for path in files_of(part):
        wrong = parts_imported(path) - MAY_IMPORT[part] - {part}
        assert not wrong, f"{path.relative_to(ROOT)} imports mdlm_jax.{', mdlm_jax.'.join(sorted(wrong))}"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_nothing_below_knows_the_command_line(part):
    for path in files_of(part):
        tops = {name.split(".")[0] for name in imported_names(path)}
        assert not tops & {"launch", "configs", "argparse", "absl"}, path


def test_core_imports_jax_and_numpy_alone():
    for path in files_of("core"):
        others = {name.split(".")[0] for name in imported_names(path)} - set(sys.stdlib_module_names) - {"mdlm_jax"}
        assert others <= THIRD_PARTY_OF_CORE, f"{path.relative_to(ROOT)} imports {others - THIRD_PARTY_OF_CORE}"


def test_no_module_is_imported_by_a_private_name_of_jax():
    for path in PACKAGE.rglob("*.py"):
        assert not [name for name in imported_names(path) if name.startswith("jax._src")], path


def test_the_package_and_all_its_folders_import_next_to_nothing():
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")]
    code = (
        f"import sys, time; begin = time.process_time(); import {', '.join(sorted(names))}; "
        f"print(time.process_time() - begin); print(*sorted({HEAVY!r}.intersection(sys.modules)))"
    )
    seconds, heavy = run_python(code).stdout.split("\n")[:2]
    assert len(names) >= 8 and heavy == ""
    assert float(seconds) < 0.5


def test_importing_the_package_takes_less_than_a_second():
    done = run_python("import mdlm_jax", "-X", "importtime")
    line = next(line for line in done.stderr.splitlines() if line.endswith("| mdlm_jax"))
    assert int(line.split("|")[1]) < 1_000_000  # microseconds, everything it imports included


def test_no_module_of_ours_needs_tensorflow_or_torch():
    modules = [".".join(path.with_suffix("").relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")]
    extra = {"mdlm_jax.harness"}  # which is for a library that brings what it likes
    names = sorted({name.removesuffix(".__init__") for name in modules} - extra)
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names!r}]; "
        "print(*sorted({'tensorflow', 'torch', 'transformers', 'orbax'}.intersection(sys.modules)))"
    )
    assert run_python(code).stdout == "\n"
