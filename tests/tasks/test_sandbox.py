"""What a program of a model's may do: little, and not for long."""

import os
import sys
import time
from pathlib import Path

import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.tasks import sandbox
from mdlm_jax.tasks.sandbox import Limits, run

FAST = Limits(seconds=5.0)
ROOT_ON_LINUX = sys.platform.startswith("linux") and os.getuid() == 0


def test_it_runs_and_fails_as_python_does():
    assert run("print(6 * 7)").said == "42\n" and run("print(6 * 7)").status == 0
    failed = run("assert 1 == 2, 'no'", FAST)
    assert failed.status == 1 and "AssertionError: no" in failed.said and not failed.timed_out
    assert run("raise SystemExit(0)", FAST).status == 0 and run("import os; os.abort()", FAST).status < 0
    assert run("def broken(:", FAST).status == 1 and run("print('\udc80')", FAST).status == 0


@pytest.mark.parametrize("program", [
    "exit()", "import sys; sys.exit(0)", "raise SystemExit", "import os; os._exit(0)", "import os\nif os.fork(): 1 / 0",
    "import os\nfor n in range(3, 99):\n    try: os.write(n, b'network processes number\\n' * 3)\n"
    "    except OSError: pass\nos._exit(0)",
    "import sys\nsys.stdout.write('\\n'.join(sys.argv)); exit()",
])
def test_leaving_early_is_not_finishing(program):
    found = run(f"{program}\nprint('here')", FAST)
    assert not found.finished and not found.timed_out


@pytest.mark.parametrize("program", [
    "if __name__ == '__main__': input()", "import sys; sys.stdout.close()",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass Here:\n    x: int\nHere(1)",
    "import pickle\nclass Here: pass\nassert type(pickle.loads(pickle.dumps(Here()))) is Here",
])
def test_the_last_line_is_the_end(program):
    """Whatever stands in a block of __main__, and what goes on behind it; a module is where the library looks."""
    found = run(program, FAST)
    assert found.finished and found.status == 0 and not found.timed_out, found.said


@pytest.mark.skipif(not ROOT_ON_LINUX, reason="needs namespaces for sure")
@pytest.mark.parametrize("seconds", [0.7, 5.0])
def test_nothing_outlives_it_in_a_session_of_its_own(seconds, tmp_path):
    """Stopped at the time limit, and at its own end."""
    here = tmp_path / "here"
    found = run(f"import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
                f"    time.sleep(1.5)\n    open({str(here)!r}, 'w')\n    os._exit(0)\ntime.sleep(0.2)\n"
                f"{'time.sleep(60)' if seconds < 1 else ''}", Limits(seconds=seconds, processes=4))
    assert found.timed_out == (seconds < 1) != found.finished
    time.sleep(2.0)
    assert not here.exists()


def test_it_cannot_end_its_caller():
    """A process stands between them: this one would be gone."""
    found = run("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(3)", FAST)
    assert not found.finished and not found.timed_out and found.status == -9


def test_what_the_machine_does_not_give_is_said(monkeypatch):
    """Without namespaces programs are run all the same."""
    assert all(clause in sandbox._WITHOUT.values() for clause in sandbox.lacking())
    if ROOT_ON_LINUX:
        assert sandbox.lacking() == [sandbox._WITHOUT["number"]]
    monkeypatch.setattr(sandbox, "run", lambda program: sandbox.Ran(0, False, "", True, frozenset()))
    assert sandbox.lacking() == list(sandbox._WITHOUT.values())
    monkeypatch.setattr(sandbox, "run", lambda program: sandbox.Ran(-9, False, "a\nno memory\n", False, frozenset()))
    with pytest.raises(ConfigError, match=r"an empty one ended with status -9 \(no memory\)"):
        sandbox.lacking()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_without_namespaces_it_runs_all_the_same(tmp_path, monkeypatch):
    refusing = tmp_path / "confined.py"
    refusing.write_text(sandbox._CONFINED.read_text().replace("if library.unshare(wanted | also) == 0:", "if False:"))
    monkeypatch.setattr(sandbox, "_CONFINED", refusing)
    found = run("print(1)", FAST)
    assert found.finished and found.said == "1\n" and not found.isolation & {"network", "processes"}
    assert sandbox.lacking()[:2] == [sandbox._WITHOUT["network"], sandbox._WITHOUT["processes"]]
    assert run("import time; time.sleep(30)", Limits(seconds=0.7)).timed_out
    assert run("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(3)", FAST).status == -9


def test_it_is_stopped_with_what_it_started(tmp_path):
    begin = time.monotonic()
    found = run("import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
                "while True: pass", Limits(seconds=1.0, processes=8))
    assert found.timed_out and found.status < 0 and time.monotonic() - begin < 5
    assert run("import time; time.sleep(30)", Limits(seconds=0.5)).timed_out


def test_memory_and_files_are_bounded():
    greedy = run("x = bytearray(1 << 31)", FAST)
    assert greedy.status != 0 and "MemoryError" in greedy.said
    large = run("open('f', 'wb').write(b'0' * (1 << 22))", FAST)
    assert large.status != 0
    assert run("open('f', 'w').write('small')", FAST).status == 0


def test_it_sees_neither_the_environment_nor_the_folder_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("")
    said = run("import os\nprint(os.environ.get('SECRET'), os.listdir('.'), os.getcwd())", FAST).said
    kept, found, folder = said.split(" ", 2)
    assert (kept, found) == ("None", "[]") and not Path(folder.strip()).exists()


@pytest.mark.skipif(not ROOT_ON_LINUX, reason="needs namespaces for sure")
def test_it_has_no_network():
    program = ("import socket\ns = socket.socket()\ns.settimeout(2)\ntry:\n    s.connect(('127.0.0.1', PORT))\n"
               "    print('through')\nexcept OSError: print('none')")
    import socket
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert run(program.replace("PORT", str(server.getsockname()[1])), FAST).said == "none\n"
