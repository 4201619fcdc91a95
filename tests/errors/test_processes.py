"""Every command in a process of its own: typical mistakes end with one line of error and status 2, no traceback."""

import tomllib

import pytest

from tests.launch.commands import ROOT, run

COMMANDS = ("train", "sample", "evaluate", "tradeoff", "evolution", "scaling", "distil", "tasks", "trajectories",
            "local", "plan", "convert", "pods", "prepare")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", [[], ["--wrokdir=x"], ["word"], ["--config=nowhere", "--workdir=x"],
                                   ["--checkpoint=nowhere"], ["--checkpoint"]])
def test_mistakes_end_with_one_line(command, words, tmp_path):
    done = run(f"launch.{command}", *words, cwd=tmp_path)
    lines = done.err.splitlines()
    assert done.status == 2 and not done.out and len(lines) == 1 and lines[0].startswith("error: "), done
    assert not list(tmp_path.iterdir())


def test_every_command_is_tried():
    """As pyproject.toml names them."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name.removeprefix("mdlm-") for name in scripts} == set(COMMANDS)
