"""The cell that all notebooks begin with: what it installs, for which machine, and what it says when it cannot."""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL = "".join(json.loads((ROOT / "notebooks/denoise.ipynb").read_text(encoding="utf-8"))["cells"][1]["source"])
WHEEL = "mdlm_jax-0.1.0-py3-none-any.whl"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without the library, of which the fields say what it has; ``run()`` runs the cell on it."""
    made = SimpleNamespace(folder=tmp_path, found=None, nvidia=None, nodes=(), pip=0, asked=[], repository=WHEEL)
    find_spec, plain = importlib.util.find_spec, Path.glob

    def runs(command, **_):
        if command[0] == "nvidia-smi":
            return SimpleNamespace(returncode=made.nvidia)
        made.asked.append(command)
        return SimpleNamespace(returncode=made.pip)

    def glob(path, pattern):
        if path != Path("/dev"):
            return plain(path, pattern)
        return [path / node for node in made.nodes if (path / node).match(pattern)]

    def run():
        source = re.sub('(?<=REPOSITORY = ")[^"]*', made.repository, CELL)
        scope = {}
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.delenv("TPU_NAME", raising=False)
            patch.setattr(importlib.util, "find_spec", lambda name: made.found if "mdlm" in name else find_spec(name))
            patch.setattr(subprocess, "run", runs)
            patch.setattr("shutil.which", lambda name: None if made.nvidia is None else f"/usr/bin/{name}")
            patch.setattr(Path, "glob", glob)
            exec(compile(source, "first", "exec"), scope)
        return scope

    made.run = run
    (tmp_path / WHEEL).touch()
    return made


def wanted(machine):
    """What pip was asked for, once."""
    (command,) = machine.asked
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    return command[-2:]


@pytest.mark.parametrize("nvidia, nodes, extra", [
    (None, (), ""), (0, (), "[cuda]"), (9, (), ""), (0, ("vfio/0",), "[cuda]"), (9, ("accel0",), "[tpu]"),
    (None, ("vfio/vfio",), ""), (None, ("vfio/vfio", "vfio/3"), "[tpu]"), (None, ("accel0",), "[tpu]")])
def test_what_belongs_to_the_machine_is_installed(machine, capsys, nvidia, nodes, extra):
    """A stock Linux host has /dev/vfio/vfio, and an image with nvidia-smi may have no GPU."""
    machine.nvidia, machine.nodes = nvidia, nodes
    machine.run()
    assert wanted(machine) == [f"mdlm_jax{extra} @ {(machine.folder / WHEEL).as_uri()}", "jax<0.11"]
    said = capsys.readouterr().out
    assert re.match(r"installing, about \d minutes; pip may complain about packages that are not used here\n", said)


def test_a_library_that_is_there_is_left_alone(machine, capsys):
    machine.found = importlib.machinery.ModuleSpec("mdlm_jax", None, origin="/somewhere/mdlm_jax/__init__.py")
    machine.run()
    assert machine.asked == [] and "installing" not in capsys.readouterr().out


def test_a_clone_beside_the_notebook_is_installed_and_not_imported(machine):
    """Python finds such a folder, as a package of no file."""
    (machine.folder / "mdlm_jax").mkdir()
    machine.found = importlib.machinery.ModuleSpec("mdlm_jax", None)
    machine.run()
    assert wanted(machine)[0].endswith(WHEEL)
    (machine.folder / "mdlm_jax/pyproject.toml").touch()
    machine.asked.clear()
    machine.repository = "git+https://github.com/OWNER/mdlm_jax"
    machine.run()
    assert wanted(machine)[0] == f"mdlm_jax @ {(machine.folder / 'mdlm_jax').as_uri()}"


@pytest.mark.parametrize("repository, pip, message", [
    ("git+https://github.com/OWNER/mdlm_jax", 0, "REPOSITORY: still says OWNER; set it"),
    ("other.whl", 0, "REPOSITORY: there is no file other.whl; upload it"),
    ("git+https://github.com/someone/fork", 1, "mdlm_jax: pip could not install it from git.*someone/fork; its lines")])
def test_what_cannot_be_installed_is_one_line(machine, repository, pip, message):
    machine.repository, machine.pip = repository, pip
    with pytest.raises(SystemExit, match=f"^{message}") as stopped:
        machine.run()
    assert "\n" not in str(stopped.value)


def test_another_numpy_that_was_loaded_asks_for_a_restart(machine, monkeypatch):
    import numpy

    monkeypatch.setattr(numpy, "__version__", "1.0")
    with pytest.raises(SystemExit, match="^numpy: another version was loaded before; restart the session"):
        machine.run()


def test_an_accelerator_that_jax_does_not_see_is_told_of(machine, monkeypatch, capsys):
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    machine.found = importlib.machinery.ModuleSpec("mdlm_jax", None, origin="/somewhere/mdlm_jax/__init__.py")
    for nvidia, nodes, extra in ((0, (), "cuda12"), (None, ("accel0",), "tpu")):
        machine.nvidia, machine.nodes = nvidia, nodes
        machine.run()
        assert f'%pip install "jax[{extra}]=={jax.__version__}"' in capsys.readouterr().out
    machine.nvidia, machine.nodes = None, ()
    machine.run()
    assert "warning" not in capsys.readouterr().out
