"""The front door: what is packaged, and that README and CI tell the same command."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mdlm_jax

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP_LEVEL = {"mdlm_jax.configs": "configs", "mdlm_jax.launch": "launch"}


def test_every_folder_of_python_files_is_packaged():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mdlm_jax").rglob("*.py")}
    below = {f"{name}.{path.parent.relative_to(ROOT / folder)}".replace("/", ".") for name, folder in TOP_LEVEL.items()
             for path in (ROOT / folder).glob("*/*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | set(TOP_LEVEL) | below
    assert PROJECT["tool"]["setuptools"]["package-dir"] == TOP_LEVEL | {"mdlm_jax": "mdlm_jax"}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in TOP_LEVEL.values())


def test_the_same_folders_run_from_a_checkout_and_from_a_wheel():
    """Only relative imports of launch, and absolute ones of mdlm_jax, mean the same under both names."""
    forbidden = re.compile(r"^\s*(from|import) (launch|configs|mdlm_jax\.(launch|configs))\b", re.M)
    for folder in TOP_LEVEL.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert not forbidden.search(path.read_text()), path


def test_readme_tells_the_very_command_that_ci_runs():
    *_, command = (ROOT / ".ci" / "run").read_text().splitlines()
    assert command.startswith("pip install") and "python -m pytest" in command
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert command in lines, f"README.md has no line {command!r}"


def test_ci_script_is_sound():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_checks_style_and_types_before_the_tests():
    """Each on a line of its own: what fails before an ``&&`` does not end a script."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-4:-1] == ['pip install -e ".[lint]"', "ruff check .", "mypy"]


def test_every_ignored_error_of_a_type_has_a_code_and_a_reason():
    for folder in ("mdlm_jax", "configs", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                if "type: " + "ignore" in line:
                    assert re.search(r"# type: ignore\[[a-z-]+\]  # \S", line), f"{path}: {line.strip()}"


def test_ci_refuses_an_old_python(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run([ROOT / ".ci" / "run"], env=os.environ | {"PYTHON": str(old)}, capture_output=True, text=True)
    assert done.returncode == 2 and "no Python 3.11 or newer" in done.stderr


def test_versions_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {mdlm_jax.__version__}" in changelog
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mdlm_jax.__version__"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout, built from a copy of it."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=unwanted)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, folder / "checkout"]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_package_its_configs_and_commands(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in ("mdlm_jax", *TOP_LEVEL.values()):
        for path in (ROOT / part).rglob("*.py"):
            inside = path.relative_to(ROOT) if part == "mdlm_jax" else Path("mdlm_jax") / path.relative_to(ROOT)
            assert inside.as_posix() in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mdlm_jax"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "mdlm_jax/py.typed" in names


@pytest.mark.slow
def test_commands_of_the_wheel_work_from_any_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    for arguments in (["train", "--config=quickstart", "--dry_run"], ["train", "--help"], ["sample", "--help"],
                      ["tasks", "--help"], ["scaling", "--config=scaling", "--dry_run"]):
        module, *flags = arguments
        done = subprocess.run([sys.executable, "-m", f"mdlm_jax.launch.{module}", *flags], cwd=tmp_path / "elsewhere",
                              env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr.startswith("all right: " if "quickstart" in flags[0] else ""), done
        assert len(done.stdout) > 1000 and (module != "scaling" or "30 runs" in done.stdout)
