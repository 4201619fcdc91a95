"""What the recipes share: a list of actions, printed or run."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from mdlm_jax.config import ConfigError

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JOINTS = ("&&", "||")
_BUILTINS = {
    "source": "call the environment's own Python, as in -- .venv/bin/python -m launch.train",
    "cd": "give --folder=DIR, or call launch.pods there",
    "export": "give --env=NAME=VALUE",
}
_BUILTINS["."] = _BUILTINS["source"]
_OURS = re.compile(r"\blaunch\.\w|\bmdlm-\w")


@dataclasses.dataclass(frozen=True)
class Action:
    """One command of this machine, with what it reads on its standard input.

    Attributes:
      words: program and arguments.
      stdin: its input; empty: none.
    """

    words: tuple[str, ...]
    stdin: str = ""

    def text(self) -> str:
        """As a shell would take it."""
        line = shlex.join(self.words)
        return f"{line} <<'END'\n{self.stdin}END" if self.stdin else line


def show(actions: Sequence[Action], together: bool) -> str:
    """Exactly what would run, one after the other, or ``together`` at once."""
    joined = " &\n".join(action.text() for action in actions) + (" &\nwait" if together else "")
    return (joined if together else "\n".join(action.text() for action in actions)) + "\n"


def go(actions: Sequence[Action], together: bool) -> int:
    """Runs them; the first status that is not 0, else 0. Together: when one fails the others are stopped.

    Raises:
      ConfigError: the program is not on this machine.
    """
    for action in actions:
        if shutil.which(action.words[0]) is None:
            raise ConfigError(f"{action.words[0]}: not on this machine's PATH; install it, or leave out --go")
    if together:
        return _together(actions)
    for action in actions:
        status = subprocess.run(action.words, input=action.stdin or None, text=True).returncode
        if status:
            return _status(status)
    return 0


def check_command(command: Sequence[str]) -> None:
    """ConfigError where there is none, where it already says how its processes meet, or where it would be another
    command on the machines: its words are quoted, and --distributed stands behind the last of them."""
    if not command:
        raise ConfigError("-- COMMAND is missing; write it after two dashes, as in -- python -m launch.train "
                          "--config=llada_8b --workdir=/shared/run")
    given = next((word for word in command if word.startswith("--distributed")), None)
    if given:
        raise ConfigError(f"{given}: the recipe adds this flag; leave it out of COMMAND")
    first = command[0]
    if first in _BUILTINS or _is_line(first) or any(word in _JOINTS for word in command):
        at_fault = next((word for word in command if word in _JOINTS), first)
        remedy = _BUILTINS.get(first, _BUILTINS["source"])
        raise ConfigError(f"-- {at_fault!r}: COMMAND is one program and its words, not a line for a shell; {remedy}")
    if home := next((word for word in command if word.startswith("~")), None):
        raise ConfigError(f"-- {home}: is quoted, so no shell puts the home in its place; write an absolute path, or "
                          "one relative to the folder where the command runs, as in .venv/bin/python")
    name, equals, _ = first.partition("=")
    if equals and _VARIABLE.fullmatch(name):
        raise ConfigError(f"-- {first}: a variable before the program is not understood everywhere; give --env={first}")
    _check_shell(command)


def _is_line(word: str) -> bool:
    """Whether it is more than the name of a program; a path may have a blank in it."""
    return not word or " " in word and not word.startswith("/")


def _check_shell(command: Sequence[str]) -> None:
    if re.fullmatch(r"(.*/)?(ba|da|z|k)?sh", command[0]):
        at = next((place for place, word in enumerate(command) if re.fullmatch(r"-[a-z]*c", word)), len(command))
        if any(_OURS.search(word) for word in command[at + 1:]):
            raise ConfigError(f"-- {command[0]} {command[at]}: --distributed would stand outside of the quotes, and "
                              "what is in them is not checked; give the command itself, as in -- .venv/bin/python -m "
                              "launch.train, with --folder and --env")


def check_folder(folder: str) -> str:
    """ConfigError for a --folder that begins with a home."""
    if folder.startswith("~"):
        raise ConfigError(f"--folder={folder}: is quoted, so no shell puts the home in its place; write an absolute "
                          "path, or one relative to the home, as in mdlm_jax")
    return folder


def environment(text: str) -> dict[str, str]:
    """``NAME=VALUE,NAME=VALUE``."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ConfigError(f"--env={text}: write NAME=VALUE,NAME=VALUE, as in HF_HOME=/data/hf")
        found[name] = value
    return found


def shell_line(command: Sequence[str], variables: dict[str, str], folder: str = "") -> str:
    """The command as one line for a shell elsewhere: in ``folder``, with these variables."""
    setting = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
    return (f"cd {shlex.quote(folder)} && " if folder else "") + setting + shlex.join(command)


def check_name(flag: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise ConfigError(f"--{flag}={value}: must be at most 40 small letters, digits and dashes, a letter first")
    return value


def at_least(flags: dict, name: str, default: int, least: int = 1) -> int:
    value = flags.get(name, default)
    if value < least:
        raise ConfigError(f"--{name}={value}: must be at least {least}")
    return value


def _together(actions: Sequence[Action]) -> int:
    import time

    running: list[subprocess.Popen] = []
    try:
        running += [subprocess.Popen(action.words, stdin=subprocess.DEVNULL) for action in actions]
        while True:
            states = [child.poll() for child in running]
            failed = next((state for state in states if state), None)
            if failed or None not in states:
                return _status(failed or 0)
            time.sleep(0.1)
    finally:
        _stop(running)


def _stop(running: list[subprocess.Popen]) -> None:
    for child in running:
        if child.poll() is None:
            child.terminate()
    for child in running:
        try:
            child.wait(timeout=60)  # a training run saves meanwhile
        except subprocess.TimeoutExpired:
            print(f"process {child.pid} does not stop; killing it", file=sys.stderr)
            child.kill()
            child.wait()


def _status(state: int) -> int:
    return 128 - state if state < 0 else state
