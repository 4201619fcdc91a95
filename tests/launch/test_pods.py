"""The recipes of launch.pods: what they print, what they refuse, and what they do with programs of the same names."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.pods import _recipe, gke, slurm, ssh, tpu_vm
from launch.pods.__main__ import main
from tests.launch import commands

TRAIN = ["python", "-m", "launch.train", "--config=quickstart", "--workdir=/shared/a run"]
REQUIRED = {"tpu-vm": ("--name=a", "--zone=z"), "gke": ("--name=a", "--topology=v5e:4x4", "--image=i"),
            "slurm": ("--name=a", "--nodes=2"), "ssh": ("--hosts=a,b",)}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs on the PATH: name -> shell text. Returns the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(**texts):
        for name, text in texts.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(stat.S_IRWXU)
        return folder

    return make


def test_ssh_prints_one_line_a_machine(capsys):
    assert main(["ssh", "--hosts=me@node0,node1", "--env=A=b c", "--folder=/code", "--", *TRAIN]) == 0
    assert capsys.readouterr().out == """\
ssh -tt -o BatchMode=yes -o ServerAliveInterval=30 me@node0 'cd /code && A='"'"'b c'"'"' python -m launch.train \
--config=quickstart '"'"'--workdir=/shared/a run'"'"' --distributed=node0:8476,2,0' &
ssh -tt -o BatchMode=yes -o ServerAliveInterval=30 node1 'cd /code && A='"'"'b c'"'"' python -m launch.train \
--config=quickstart '"'"'--workdir=/shared/a run'"'"' --distributed=node0:8476,2,1' &
wait
"""


def test_tpu_vms_print_one_line_a_slice(capsys):
    arguments = ["tpu-vm", "--name=llada", "--zone=us-east5-a", "--project=p"]
    command = ["python3", "-m", "launch.train", "--config=quickstart", "--workdir=gs://b/run"]
    assert main([*arguments, "--", *command]) == 0
    assert capsys.readouterr().out == (
        "gcloud compute tpus tpu-vm ssh llada --zone=us-east5-a --project=p --worker=all '--command=cd mdlm_jax && "
        "python3 -m launch.train --config=quickstart --workdir=gs://b/run --distributed=auto'\n")
    assert main([*arguments, "--num_slices=2", "--", *command]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert " ssh llada-0 " in first and " ssh llada-1 " in second and first.endswith("&") and last == "wait"


def test_tpu_vms_are_asked_for(capsys):
    arguments = ["tpu-vm", "--create", "--name=llada", "--zone=z", "--version=v2", "--num_slices=2", "--spot"]
    assert main([*arguments, "--accelerator=v5e-256"]) == 0
    assert capsys.readouterr().out == (
        "gcloud compute tpus queued-resources create llada --zone=z --accelerator-type=v5litepod-256 "
        "--runtime-version=v2 --node-count=2 --node-prefix=llada --spot\n")
    assert main([*arguments, "--accelerator=v3-8"]) == 0  # which is not planned for
    assert " --accelerator-type=v3-8 " in capsys.readouterr().out


@pytest.mark.parametrize(("topology", "slices", "hosts", "chips", "accelerator", "layout"), (
    ("v5e:16x16", 1, 64, 4, "tpu-v5-lite-podslice", "16x16"),
    ("v5e:16x16", 2, 64, 4, "tpu-v5-lite-podslice", "16x16"),
    ("v5p:8x8x8", 1, 128, 4, "tpu-v5p-slice", "8x8x8"),
    ("v5p-512", 1, 64, 4, "tpu-v5p-slice", "4x8x8"),
    ("v6e:1x1", 1, 1, 1, "tpu-v6e-slice", "1x1"),
    ("tpu7x:4x4x4", 1, 16, 4, "tpu7x", "4x4x4"),
))
def test_a_jobset_is_yaml_that_says_what_was_asked(topology, slices, hosts, chips, accelerator, layout):
    flags = {"name": "llada", "topology": topology, "num_slices": slices, "image": "gcr.io/p/i:v1", "env": "A=b: 'c'",
             "service_account": "trainer", "grace": 90}
    (action,) = gke.actions(flags, TRAIN)
    assert action.words == ("kubectl", "apply", "-f", "-")
    whole = yaml.safe_load(action.stdin)
    assert whole["kind"] == "JobSet" and whole["metadata"]["name"] == "llada"
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}  # a mistake fails again and again
    assert whole["spec"]["failurePolicy"] == {"maxRestarts": 10, "rules": [rule]}
    (job,) = whole["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    of_job = job["template"]["spec"]
    assert (of_job["parallelism"], of_job["completions"], of_job["backoffLimit"]) == (hosts, hosts, 0)
    assert of_job["podFailurePolicy"] == {"rules": [{"action": "FailJob", "onExitCodes": {
        "containerName": "train", "operator": "In", "values": [2]}}]}
    pod = of_job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 90
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": accelerator,
                                   "cloud.google.com/gke-tpu-topology": layout}
    (container,) = pod["containers"]
    assert container["name"] == "train"
    assert container["command"] == [*TRAIN, "--distributed=auto"]
    assert container["env"] == [{"name": "A", "value": "b: 'c'"}]
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}


def test_xpk_prints_one_line(capsys):
    assert main(["gke", *REQUIRED["gke"], "--xpk=c", "--zone=z", "--", "python", "x"]) == 0
    assert capsys.readouterr().out == (
        "xpk workload create --cluster=c --zone=z --workload=a --tpu-type=v5litepod-16 --num-slices=1 "
        "--docker-image=i --max-restarts=10 '--command=python x --distributed=auto'\n")


def directives(action) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in action.stdin.splitlines() if line.startswith("#SBATCH ")}


def test_a_slurm_script_says_what_was_asked():
    flags = {"name": "llada", "nodes": 16, "gpus_per_node": 8, "time": "2-00:00:00", "partition": "big", "env": "A=b c",
             "account": "us", "qos": "high", "cpus_per_task": 12, "mem": "480G", "sbatch.constraint": "h100"}
    (action,) = slurm.actions(flags, TRAIN)
    shared = {"--signal=B:TERM@120", "--requeue", "--open-mode=append"}
    assert directives(action) == shared | {
        "--job-name=llada", "--nodes=16", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=big",
        "--time=2-00:00:00", "--account=us", "--qos=high", "--cpus-per-task=12", "--mem=480G", "--constraint=h100",
        "--output=llada-%j.log"}
    assert "export A='b c'" in action.stdin.splitlines()
    assert ("srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} python -m "
            "launch.train --config=quickstart '--workdir=/shared/a run' --distributed=auto &") in action.stdin
    assert subprocess.run(["bash", "-n"], input=action.stdin, text=True).returncode == 0
    (few,) = slurm.actions({"name": "a", "nodes": 2, "gpus_per_node": 8, "sbatch.gres": "gpu:h100:8",
                            "sbatch.output": "logs/%j"}, TRAIN)
    assert directives(few) == shared | {"--job-name=a", "--nodes=2", "--ntasks-per-node=8", "--gres=gpu:h100:8",
                                        "--cpus-per-task=8", "--mem=0", "--output=logs/%j"}
    (own,) = slurm.actions({"name": "a", "nodes": 2, "gpus_per_node": 8, "sbatch.mem-per-gpu": "60G",
                            "sbatch.cpus-per-gpu": "9"}, TRAIN)
    assert directives(own) == shared | {"--job-name=a", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8",
                                        "--mem-per-gpu=60G", "--cpus-per-gpu=9", "--output=a-%j.log"}
    (alone,) = slurm.actions({"name": "a", "nodes": 2}, TRAIN)
    assert {"--ntasks-per-node=1", "--exclusive"} < directives(alone) and "gpus" not in alone.stdin


def test_other_flags_of_sbatch_are_passed_on(capsys):
    assert main(["slurm", *REQUIRED["slurm"], "--sbatch.exclude=node7", "--sbatch.contiguous", "--", *TRAIN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#SBATCH --exclude=node7" in lines and "#SBATCH --contiguous" in lines


@pytest.mark.parametrize(("name", "arguments", "message"), (
    ("sssh", (), "the first word is one of tpu-vm, gke, slurm, ssh; did you mean ssh?"),
    ("", (), "the first word is one of"),
    ("ssh", ("--",), "--hosts is missing"),
    ("ssh", ("--hosts=a,,b", "--", "x"), "'' is no machine"),
    ("ssh", ("--hosts=a,-oProxyCommand=x", "--", "x"), "'-oProxyCommand=x' is no machine"),
    ("ssh", ("--hosts=a,a", "--", "x"), "stands there twice"),
    ("ssh", ("--hosts=a", "--port=70000", "--", "x"), "--port=70000: must be at most 65535"),
    ("ssh", ("--hosts=a", "--env=1A=b", "--", "x"), "--env=1A=b: write NAME=VALUE"),
    ("ssh", ("--hosts=a", "--nodes=2", "--", "x"), "--nodes: there is no such flag"),
    ("tpu-vm", ("--name=A", "--zone=z", "--", "x"), "--name=A: must be at most 40 small letters"),
    ("tpu-vm", ("--name=a", "--zone=z", "--spot", "--", "x"), "--spot=True: of --create"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create"), "--accelerator is missing"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--", "x"), "--create runs no command"),
    ("gke", ("--name=a", "--topology=v5x:4x4", "--image=i", "--", "x"), "generations are"),
    ("gke", ("--name=a", "--topology=h100:8x2", "--image=i", "--", "x"), "use slurm or ssh for GPUs"),
    ("gke", ("--name=a", "--topology=v5e:3x3", "--image=i", "--", "x"), "9 chips must be a multiple of"),
    ("gke", ("--name=a", "--topology=v5e:4x4", "--image=i", "--zone=z", "--", "x"), "--zone=z: of --xpk"),
    ("gke", ("--name=a", "--topology=v5e:4x4", "--image=i", "--xpk=c", "--grace=9", "--", "x"), "--grace=9: of a"),
    ("slurm", ("--name=a", "--nodes=0", "--", "x"), "--nodes=0: must be at least 1"),
    ("slurm", ("--name=a", "--nodes=2", "--time=soon", "--", "x"), "--time=soon: write minutes"),
    ("slurm", ("--name=a", "--nodes=2", "--mem=much", "--", "x"), "--mem=much: write megabytes"),
    ("slurm", ("--name=a", "--nodes=2", "--cpus_per_task=0", "--", "x"), "--cpus_per_task=0: must be at least 1"),
    ("slurm", ("--name=a", "--nodes=2", "--account=a b", "--", "x"), "--account='a b': goes into a line #SBATCH"),
    ("slurm", ("--name=a", "--nodes=2", "--sbatch.nodes=3", "--", "x"), "--sbatch.nodes=3: write it as --nodes"),
    ("slurm", ("--name=a", "--nodes=2", "--sbatch.wrap=x", "--", "x"), "--sbatch.wrap=x: the script says this itself"),
    ("slurm", ("--name=a", "--nodes=2", "--sbatch.A=x", "--", "x"), "--sbatch.A=x: write a long name of sbatch"),
    ("slurm", ("--name=a", "--nodes=2", "--sbatch.", "--", "x"), "--sbatch.: there is no such flag"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--version=v", "--accelerator=v5p-500"),
     "--accelerator=v5p-500: the cloud has no such slice (the number counts TensorCores, two a chip); choose v5p-384 "
     "(v5p:4x4x12) or v5p-512 (v5p:4x8x8)"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--version=v", "--accelerator=v5p:2x8x8"), "has no name for that"),
    ("tpu-vm", ("--name=a", "--zone=z", "--accelerator=h100:8x2", "--", "x"), "use slurm or ssh for GPUs"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--accelerator=v5p-512"), "as in --version=v2-alpha-tpuv5"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--accelerator=v6e-16"), "as in --version=v2-alpha-tpuv6e"),
    ("tpu-vm", ("--name=a", "--zone=z", "--create", "--accelerator=v5p-512", "--version=v2-alpha-tpuv5-lite"),
     "--version=v2-alpha-tpuv5-lite: is the runtime of another generation than v5p-512; give --version=v2-alpha-tpuv5"),
    ("tpu-vm", ("--name=a", "--zone=z", "--folder=~/code", "--", "x"), "--folder=~/code: is quoted, so no shell puts"),
    ("ssh", ("--hosts=a", "--folder=~", "--", "x"), "one relative to the home, as in mdlm_jax"),
    ("ssh", ("--hosts=a", "--", "~/venv/bin/python", "x"), "-- ~/venv/bin/python: is quoted, so no shell"),
    ("ssh", ("--hosts=a", "--", "source", "x", "&&", "python"), "-- '&&': COMMAND is one program and its words"),
    ("ssh", ("--hosts=a", "--", "source", "x"), "-- 'source': COMMAND is one program and its words, not a line for a "
     "shell; call the environment's own Python, as in -- .venv/bin/python -m launch.train"),
    ("gke", ("--name=a", "--topology=v5e:4x4", "--image=i", "--", "cd /a && python x"), "-- 'cd /a && python x': COMM"),
    ("ssh", ("--hosts=a", "--", "cd", "/a"), "give --folder=DIR"),
    ("ssh", ("--hosts=a", "--", "bash", "-lc", "python -m launch.train --config=quickstart"),
     "-- bash -lc: --distributed would stand outside of the quotes"),
    ("slurm", ("--name=a", "--nodes=2", "--", "FOO=1", "python", "x"), "-- FOO=1: a variable before the program is not "
     "understood everywhere; give --env=FOO=1"),
    ("slurm", ("--name=a", "--nodes=2", "--", "srun", "python", "x"), "-- srun: the script calls srun itself"),
    ("gke", ("--name=a", "--topology=v6e-200", "--image=i", "--", "x"), "choose v6e-128 (v6e:8x16) or v6e-256"),
    ("gke", ("--name=a", "--topology=v5p:2x8x8", "--image=i", "--xpk=c", "--zone=z", "--", "x"), "--tpu_type is mi"),
))
def test_refusals(name, arguments, message, capsys):
    assert main([name, *arguments] if name else []) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("name", list(REQUIRED))
def test_every_recipe_wants_a_command_of_its_own(name, capsys):
    assert main([name, *REQUIRED[name]]) == 2
    assert "-- COMMAND is missing" in capsys.readouterr().err
    assert main([name, *REQUIRED[name], "--", *TRAIN, "--distributed=auto"]) == 2
    assert "--distributed=auto: the recipe adds this flag" in capsys.readouterr().err


def test_what_is_not_installed_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", *REQUIRED["slurm"], "--go", "--", *TRAIN]) == 2
    assert "sbatch: not on this machine's PATH" in capsys.readouterr().err


def test_help_lists_every_recipe_without_jax():
    done = commands.run("launch.pods", "--help")
    assert done.status == 0 and not done.imported.intersection(commands.HEAVY)
    for recipe in (gke, slurm, ssh, tpu_vm):
        assert all(f"--{flag.name}" in done.out for flag in recipe.FLAGS)


def test_ssh_runs_on_every_machine(programs, tmp_path, capfd):
    """A fake ssh that runs the line here: each machine gets its own place."""
    programs(ssh='echo "${@: -2:1}" >> "$LOG"; exec bash -c "${@: -1}"')
    seen = tmp_path / "seen"
    seen.mkdir()
    code = "import os, pathlib, sys; pathlib.Path(os.environ['SEEN'], sys.argv[1][-1]).write_text(sys.argv[1])"
    arguments = ["ssh", "--go", "--hosts=node0,node1,node2", f"--folder={tmp_path}", f"--env=SEEN={seen}"]
    os.environ["LOG"] = str(tmp_path / "log")
    try:
        assert main([*arguments, "--", sys.executable, "-c", code]) == 0
    finally:
        del os.environ["LOG"]
    assert sorted((tmp_path / "log").read_text().split()) == ["node0", "node1", "node2"]
    assert [(seen / str(n)).read_text() for n in range(3)] == [f"--distributed=node0:8476,3,{n}" for n in range(3)]


def test_ssh_stops_the_others_when_one_fails(programs):
    programs(ssh='[ "${@: -2:1}" = node1 ] && exit 7; exec sleep 60')
    begin = time.monotonic()
    assert main(["ssh", "--go", "--hosts=node0,node1", "--", "x"]) == 7
    assert time.monotonic() - begin < 30


def test_kubectl_reads_the_very_text_that_was_printed(programs, tmp_path, capsys):
    programs(kubectl=f'echo "$@" > {tmp_path}/words; cat > {tmp_path}/text')
    arguments = ["gke", *REQUIRED["gke"], "--", *TRAIN]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert main([arguments[0], "--go", *arguments[1:]]) == 0
    assert (tmp_path / "words").read_text() == "apply -f -\n"
    assert printed == f"kubectl apply -f - <<'END'\n{(tmp_path / 'text').read_text()}END\n"


def test_what_is_printed_is_what_a_shell_runs(programs, tmp_path):
    programs(ssh=f'printf "%s\\n" "$@" >> {tmp_path}/words')
    (action,) = ssh.actions({"hosts": "a", "env": "A=it's"}, TRAIN)
    subprocess.run(["bash"], input=_recipe.show([action], True), text=True, check=True)
    assert (tmp_path / "words").read_text().splitlines() == list(action.words[1:])


def test_the_slurm_script_hands_the_cpus_of_a_task_on(programs, tmp_path):
    programs(srun=f'printf "%s\\n" "$@" > {tmp_path}/words')
    (action,) = slurm.actions({"name": "a", "nodes": 2, "gpus_per_node": 8}, TRAIN)
    for variables, more in (({"SLURM_CPUS_PER_TASK": "8"}, ["--cpus-per-task=8"]), ({}, [])):
        subprocess.run(["bash"], input=action.stdin, text=True, check=True, env=os.environ | variables)
        assert (tmp_path / "words").read_text().splitlines() == ["--kill-on-bad-exit=1", *more, *TRAIN,
                                                                 "--distributed=auto"]


@pytest.mark.parametrize(("status", "requeued"), ((143, True), (0, False), (3, False)))
def test_the_slurm_script_passes_sigterm_on_and_asks_for_another_turn(programs, tmp_path, status, requeued):
    """With a fake srun that kills its step on SIGTERM, as the real one does, and leaves with a status once a fake
    scancel has told the step."""
    programs(srun=f"trap 'exit 137' TERM; touch {tmp_path}/up; while [ ! -e {tmp_path}/told ]; do sleep 0.05; done; "
                  f"echo saved > {tmp_path}/saved; exit {status}",
             scancel=f'echo "$@" > {tmp_path}/told', scontrol=f'echo "$@" > {tmp_path}/requeue')
    (action,) = slurm.actions({"name": "a", "nodes": 2}, TRAIN)
    script = tmp_path / "script"
    script.write_text(action.stdin)
    job = subprocess.Popen(["bash", script], env=os.environ | {"SLURM_JOB_ID": "17"})
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == status and (tmp_path / "saved").exists()
    assert (tmp_path / "told").read_text() == "--signal=TERM 17\n"
    assert (tmp_path / "requeue").exists() == requeued
    assert not requeued or (tmp_path / "requeue").read_text() == "requeue 17\n"


PAGE = (Path(__file__).parents[2] / "docs/pods.md").read_text()


@pytest.mark.parametrize(("statuses", "started"), (((1, 143, 0), 3), ((1, 2, 0), 2), ((137, 0), 2)))
def test_the_page_s_loop_starts_again_what_can_go_on(tmp_path, statuses, started):
    loop = re.search(r"^until python .*?^do .*?done$", PAGE, re.M | re.S)[0]
    text = f"""statuses=({' '.join(map(str, statuses))}); n=0
python() {{ n=$((n + 1)); return ${{statuses[n - 1]}}; }}
sleep() {{ :; }}
"""
    done = subprocess.run(["bash", "-c", f"{text}{loop}\necho $n"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(started)] and not done.stderr
    (tmp_path / "stop").touch()
    done = subprocess.run(["bash", "-c", f"{text}{loop}\necho $n"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["1"]


def test_the_page_s_signal_reaches_python_and_not_the_shell_around_it(tmp_path):
    pattern = re.search(r"pkill -TERM -f '(.*?)'", PAGE)[1]
    (action,) = tpu_vm.actions({"name": "a", "zone": "z"}, [".venv/bin/python", *TRAIN[1:]])
    line = action.words[-1].removeprefix("--command=")
    assert not re.search(pattern, f"bash -c {line}") and not re.search(pattern, f"bash -c pkill -TERM -f '{pattern}'")
    assert re.search(pattern, line.rpartition("&& ")[2])
