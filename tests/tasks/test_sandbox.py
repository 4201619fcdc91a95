"""What a program of a model's may do: little, and not for long."""

import os
import sys
import time
from pathlib import Path

import pytest

from mdlm_jax.tasks.sandbox import Limits, run

FAST = Limits(seconds=5.0)


def test_it_runs_and_fails_as_python_does():
    assert run("print(6 * 7)").said == "42\n" and run("print(6 * 7)").status == 0
    failed = run("assert 1 == 2, 'no'", FAST)
    assert failed.status == 1 and "AssertionError: no" in failed.said and not failed.timed_out
    assert run("raise SystemExit(0)", FAST).status == 0 and run("import os; os.abort()", FAST).status < 0
    assert run("def broken(:", FAST).status == 1 and run("print('\udc80')", FAST).status == 0


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


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.getuid() != 0, reason="needs namespaces for sure")
def test_it_has_no_network():
    program = ("import socket\ns = socket.socket()\ns.settimeout(2)\ntry:\n    s.connect(('127.0.0.1', PORT))\n"
               "    print('through')\nexcept OSError: print('none')")
    import socket
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert run(program.replace("PORT", str(server.getsockname()[1])), FAST).said == "none\n"
