"""What launch.pods checks of a command of ours before anything is printed, by the flags of each recipe."""

import pytest

from launch.pods.__main__ import main
from tests.launch import commands

TPU_VM = ("tpu-vm", "--name=a", "--zone=z")
POD = (*TPU_VM, "--accelerator=v5p-512")
GKE = ("gke", "--name=a", "--topology=v5e:16x16", "--image=i")
SLURM = ("slurm", "--name=a", "--nodes=2", "--gpus_per_node=8")
SSH = ("ssh", "--hosts=a,b,c")
LLADA = ("python3", "-m", "launch.train", "--config=llada_8b")
QUICK = ("mdlm-train", "--config=quickstart")
BUCKET = "--workdir=gs://bucket/run"
MOUNTED = "--workdir=/mnt/run"


@pytest.mark.parametrize(("recipe", "command", "message"), (
    # the command's own parser and configuration
    (TPU_VM, (*LLADA, BUCKET, "--config.train.batch_sze=3"), "did you mean --config.train.batch_size?"),
    (TPU_VM, (*LLADA, BUCKET, "--wrkdir=x"), "--wrkdir: there is no such flag"),
    (TPU_VM, (*LLADA, BUCKET, "--config.train.steps=many"), "--config.train.steps=many: must be a whole number"),
    (TPU_VM, (*LLADA, BUCKET, "--config.model.heads=33"), "must divide heads=33"),
    (TPU_VM, LLADA, "--workdir is missing"),
    (TPU_VM, ("python", "-m", "launch.train", BUCKET), "--config is missing"),
    (TPU_VM, ("mdlm-train", "--config=llada8b", BUCKET), "--config=llada8b: there is no such file"),
    (TPU_VM, ("python", "-u", "-X", "dev", "-m", "mdlm_jax.launch.train", "--confg=a"), "did you mean --config?"),
    (TPU_VM, ("python", "-m", "launch.trian"), "launch.trian: there is no such command; did you mean launch.train?"),
    (TPU_VM, ("mdlm-xyz",), "launch.xyz: there is no such command; the commands are convert"),
    (TPU_VM, ("mdlm-convert", "--from=a"), "launch.convert: runs on one machine alone"),
    (TPU_VM, ("mdlm-sample", "--chekpoint=a"), "did you mean --checkpoint?"),
    # the workdir
    (TPU_VM, (*LLADA, "--workdir=runs/a"), "--workdir=runs/a: would be another place on every machine; give gs://"),
    (TPU_VM, (*LLADA, "--workdir=runs/a"), "or --accelerator=v5litepod-8 where all is one host"),
    (TPU_VM, (*LLADA, "--workdir=~/a"), "--workdir=~/a: would be another place on every machine"),
    (TPU_VM, (*LLADA, "--workdir=/home/me/a"), "lies in /home, a disk of each machine's own"),
    (GKE, (*LLADA, "--workdir=runs/a"), "would be another place on every machine"),
    (SSH, (*QUICK, "--workdir=/tmp/a"), "--workdir=/tmp/a: lies in /tmp, a disk of each machine's own"),
    (SLURM, (*QUICK, "--workdir=/dev/shm/a"), "lies in /dev/shm"),
    # what the other commands write, and the recipe
    (POD, ("mdlm-tasks", "--output=gsm8k"), "--output=gsm8k: would be another place on every machine; give an abs"),
    (POD, ("mdlm-tasks", "--output=/home/me/gsm8k"), "--output=/home/me/gsm8k: lies in /home, a disk of each"),
    (POD, ("mdlm-tasks", "--output=gs://bucket/a"), "--output=gs://bucket/a: is written as a file, not to a bucket"),
    (TPU_VM, ("mdlm-tasks", "--records=a.jsonl"), "--records=a.jsonl: would be another place"),
    (SSH, ("mdlm-sample", "--picture=a.png"), "--picture=a.png: would be another place"),
    (SSH, ("mdlm-trajectories", "--output=/tmp/a"), "--output=/tmp/a: lies in /tmp, a disk of each machine's own; "),
    (POD, (*QUICK[:1], "--config=/tmp/mine.py", BUCKET), "--config=/tmp/mine.py: lies in /tmp, a disk of each "
     "machine's own; put it into the folder of the command, on all machines"),
    (SLURM, (*QUICK, "--workdir=s3://bucket/a"), "--workdir=s3://bucket/a: must be a folder, or an address gs://"),
    # the devices
    ((*TPU_VM, "--accelerator=v5p-1024"), (*LLADA, BUCKET),
     "train.mesh='replica:16,fsdp:16' makes 256 devices and 1 x v5p:8x8x8 has 512; change train.mesh, as in "
     "replica:8,fsdp:64"),
    ((*POD, "--num_slices=2"), (*LLADA, BUCKET), "makes 256 devices and 2 x v5p:4x8x8 has 512"),
    ((*GKE, "--num_slices=2"), (*LLADA, BUCKET, "--config.train.mesh=fsdp:-1"), "only replicas may span slices"),
    (GKE, (*LLADA, BUCKET, "--config.train.batch_size=100"), "train.batch_size=100"),
    (SLURM, (*LLADA, MOUNTED, "--config.model.backend=cudnn"), "makes 256 devices and 2 x 8 GPUs has 16; change "
     "train.mesh, as in replica:2,fsdp:8"),
    (SLURM, (*LLADA, MOUNTED), "model.backend='splash': does not run on GPUs; add --config.model.backend=cudnn"),
    (GKE, (*LLADA, BUCKET, "--config.model.backend=cudnn"), "add --config.model.backend=splash"),
    (SSH, (*QUICK, MOUNTED, "--config.train.mesh=fsdp:8"), "makes 8 devices, which 3 machines cannot share evenly"),
))
def test_what_the_job_would_refuse_is_refused_here(recipe, command, message, capsys):
    assert main([*recipe, "--", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(("recipe", "command", "note"), (
    (POD, (*LLADA, BUCKET), ""),
    (POD, (*LLADA, MOUNTED), ""),
    (POD, (*LLADA, "--dry_run"), ""),
    (POD, (*LLADA, "--help"), ""),
    (POD, (*LLADA, BUCKET, "--config.train.init_from=gs://bucket/other"), ""),
    (SSH, (*QUICK[:1], "--config=dmax", BUCKET, "--config.train.init_from=gs://bucket/llada2",
           "--config.train.block_schedule=8:100,32"), "--config.train.init_from=gs://bucket/llada2: is not read here"),
    ((*TPU_VM, "--accelerator=v5litepod-8"), (*QUICK, "--workdir=runs/a"), ""),  # one host
    (GKE, (*LLADA, BUCKET), ""),
    (SSH, (*QUICK, MOUNTED), ""),
    (SLURM, (*QUICK, "--workdir=~/runs/a"), ""),
    (SLURM, ("mdlm-sample", "--checkpoint=/mnt/run"), ""),
    (POD, ("mdlm-tasks", "--output=/mnt/gsm8k"), ""),
    (GKE, ("mdlm-tasks", "--output=/mnt/gsm8k"), "--output=/mnt/gsm8k: the JobSet mounts nothing"),
    (TPU_VM, (*LLADA, BUCKET), "train.mesh='replica:16,fsdp:16': was not checked"),
    (TPU_VM, (*QUICK[:1], "--config=/far/away.py", BUCKET), "--config=/far/away.py: is not on this machine"),
    (GKE, (*LLADA, MOUNTED), "--workdir=/mnt/run: the JobSet mounts nothing"),
    (POD, ("bash", "run.sh"), "bash: the command is none of ours and was not checked"),
    (POD, ("python", "mine.py"), "python: the command is none of ours"),
))
def test_what_passes_and_what_is_said_of_it(recipe, command, note, capsys):
    assert main([*recipe, "--", *command]) == 0
    captured = capsys.readouterr()
    assert command[-1] in captured.out and "--distributed=auto" in captured.out or recipe is SSH
    assert captured.err.startswith(f"note: {note}") if note else not captured.err
    assert len(captured.err.splitlines()) == bool(note)


def test_a_relative_workdir_under_slurm_is_in_the_folder_of_sbatch(capsys, monkeypatch):
    monkeypatch.chdir("/tmp")
    assert main([*SLURM, "--", *QUICK, "--workdir=runs/a"]) == 2 and "lies in /tmp" in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert main([*SLURM, "--", *QUICK, "--workdir=runs/a"]) == 0
    assert main([*SLURM, "--", "mdlm-tasks", "--output=results"]) == 0


def test_a_check_imports_no_jax():
    done = commands.run("launch.pods", *POD, "--", *LLADA, BUCKET)
    assert done.status == 0 and not done.imported.intersection(commands.HEAVY), done
