"""launch.local: starts, passes on, restarts and stops real processes, and leaves none behind."""

import io
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from launch import _supervisor
from tests.launch import commands

SLEEP = "import time, sys; print('up', flush=True); time.sleep({})"


def local(*flags, code: str = "pass", **options) -> subprocess.CompletedProcess:
    command = [*commands.command("launch.local"), *flags, "--", sys.executable, "-c", code]
    return subprocess.run(command, env=commands.environment(), cwd=commands.ROOT, capture_output=True, text=True,
                          timeout=60, **options)


def test_help():
    done = commands.run("launch.local", "--help")
    assert done.status == 0 and "--processes=N" in done.out and "jax" not in done.imported


@pytest.mark.parametrize(("flags", "message"), [
    ((), "--processes is missing"), (("--processes=2",), "-- COMMAND is missing"),
    (("--processes=0", "--", "true"), "--processes=0: must be at least 1"),
    (("--processes=1", "--grace=-1", "--", "true"), "--grace=-1: must be at least 0"),
    (("--processes=1", "--", "no-such-command"), "no-such-command: there is no such command"),
])
def test_refusals(flags, message):
    commands.assert_refused(commands.run("launch.local", *flags), message)


def test_every_process_is_told_its_place():
    done = local("--processes=3", "--devices_per_process=2",
                 code="import os; os.write(1, (os.environ['MDLM_JAX_PROCESS'] + "
                 "' ' + os.environ['JAX_NUM_CPU_DEVICES'] + os.linesep).encode())")
    assert done.returncode == 0
    places = sorted(line.split()[0].split(",") for line in done.stdout.splitlines())
    assert [place[1:] for place in places] == [["3", "0"], ["3", "1"], ["3", "2"]]
    assert len({place[0] for place in places}) == 1 and {line.split()[1] for line in done.stdout.splitlines()} == {"2"}


def test_a_process_that_dies_restarts_all(tmp_path):
    code = (f"import os, time; one = os.environ['MDLM_JAX_PROCESS'].endswith('1'); path = r'{tmp_path}/starts'\n"
            "if one: open(path, 'a').write('x')\n"
            "starts = lambda: os.path.exists(path) and len(open(path).read())\n"
            "if one and starts() < 3: os.kill(os.getpid(), 9)\n"
            "while starts() < 3: time.sleep(0.05)")
    done = local("--processes=2", "--max_restarts=5", code=code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("process 1 ended by SIGKILL") == 2
    assert "starting all 2 again in 2 s (2 of 5)" in done.stderr
    assert (tmp_path / "starts").read_text() == "xxx"


@pytest.mark.parametrize(("status", "restarts", "expected", "starts"), [(3, 2, 1, 3), (2, 2, 2, 1), (0, 2, 0, 1)])
def test_statuses(status, restarts, expected, starts, tmp_path):
    code = f"open(r'{tmp_path}/log', 'a').write('x'); raise SystemExit({status})"
    done = local("--processes=1", f"--max_restarts={restarts}", code=code)
    assert done.returncode == expected and (tmp_path / "log").read_text() == "x" * starts
    assert ("ended with status 3 3 time(s); giving up" in done.stderr) == (status == 3)


def test_starts_that_fail_at_once_come_ever_slower(tmp_path):
    code = f"import time; open(r'{tmp_path}/log', 'a').write(f'{{time.time()}} '); raise SystemExit(1)"
    done = local("--processes=1", "--max_restarts=2", code=code)
    times = [float(word) for word in (tmp_path / "log").read_text().split()]
    assert done.returncode == 1 and len(times) == 3
    for n, seconds in enumerate((1, 2)):
        assert times[n + 1] - times[n] >= seconds and f"again in {seconds} s" in done.stderr


def test_a_pause_can_be_left(tmp_path):
    supervisor = subprocess.Popen([sys.executable, "-m", "launch.local", "--processes=1", "--", "false"],
                                  env=commands.environment(), cwd=commands.ROOT, stderr=subprocess.PIPE, text=True)
    while "in 8 s" not in supervisor.stderr.readline():
        pass
    began = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(timeout=30) == 143 and time.monotonic() - began < 6


def test_the_first_failure_decides_whatever_the_others_end_with(tmp_path):
    """Process 1 says that the command is wrong; process 0, left alone, dies of it: starting again would not help."""
    code = ("import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
            f"path, one = r'{tmp_path}/log', os.environ['MDLM_JAX_PROCESS'].endswith('1')\n"
            "while one and not os.path.exists(path): time.sleep(0.05)\n"
            "with open(path, 'a') as file: file.write('x')\n"
            "if one: sys.exit(2)\n"
            "time.sleep(30)")
    done = local("--processes=2", "--max_restarts=2", code=code)
    assert done.returncode == 2 and (tmp_path / "log").read_text() == "xx", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopping_the_supervisor_stops_everything(number, tmp_path):
    code = (f"import os, time; open(r'{tmp_path}/' + str(os.getpid()), 'w'); os.write(1, b'up.'); time.sleep(60)")
    command = [*commands.command("launch.local"), "--processes=2", "--grace=5", "--", sys.executable, "-c", code]
    supervisor = subprocess.Popen(command, env=commands.environment(), cwd=commands.ROOT, stdout=subprocess.PIPE,
                                  text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert supervisor.stdout.read(6) == "up.up."
    supervisor.send_signal(number)
    status = supervisor.wait(timeout=30)
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{path.name}/cmdline") and open(f"/proc/{path.name}/cmdline").read()
              for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_mistake_that_one_process_alone_meets_ends_the_job():
    """Process 1 cannot read its rows, while process 0 waits for it; an orderly exit would last five minutes."""
    code = ("from launch import _cli, _distributed\n"
            "from mdlm_jax.config import ConfigError\n"
            "def work():\n"
            "    _distributed.join(_distributed.asked({}))\n"
            "    import jax\n"
            "    from jax.experimental import multihost_utils\n"
            "    multihost_utils.sync_global_devices('together')\n"
            "    with _distributed.leaving_at_once():\n"
            "        if jax.process_index():\n"
            "            raise ConfigError('shard 7 is damaged')\n"
            "        multihost_utils.sync_global_devices('alone')\n"
            "raise SystemExit(_cli.run(lambda argv: work, []))")
    done = local("--processes=2", "--devices_per_process=1", "--max_restarts=1", code=code)
    assert done.returncode == 2 and "[process 1] error: shard 7 is damaged" in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["terminal", "notebook"])
def test_what_processes_say_is_passed_on_in_a_notebook_too(kind, monkeypatch):
    """The stream of a Jupyter kernel has no buffer; a thread that died of it would leave the pipe full."""
    shown = io.TextIOWrapper(io.BytesIO(), write_through=True) if kind == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    _supervisor._pass_on(SimpleNamespace(stderr=[b"one\n", b"two \xff\n"]), 1)
    said = shown.buffer.getvalue().decode(errors="replace") if kind == "terminal" else shown.getvalue()
    assert said == "[process 1] one\n[process 1] two \ufffd\n"
