"""Mistakes on command lines: one line of error that names the flag, its value and the remedy, and exit status 2.

The flag at fault stands first behind the command.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import pytest

from mdlm_jax.config import RunConfig, freeze, to_dict
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer
from mdlm_jax.training.checkpoints import Checkpoints
from tests.errors.form import faults

GOLDEN = Path(__file__).parents[1] / "golden/llada"
LEFT = {"attention": "causal", "logit_shift": True}
RUNS = {
    "bytes": {},
    "causal": {"train": {"objective": "autoregressive"}, "model": LEFT},
    "blocks": {"train": {"objective": "block"}, "model": {"attention": "block_causal", "block_length": 32}},
    "learned": {"model": {"rope_theta": 0.0, "learned_positions": 128}},
    "uniform": {"process": {"mixing": 1.0}},
    "drift": {"data": {"source": "language:drift"}},
    "answers": {"data": {"source": "pairs.jsonl", "prompt_field": "prompt"}},
    "digits": {"data": {"source": "digits", "length": 64}, "model": {"classes": 10, "conditioning": "time"}},
    "plain": {"train": {"objective": "autoregressive"}, "model": LEFT | {"rope_theta": 0.0, "learned_positions": 16},
              "data": {"packing": "wrapped"}},
    "documents": {"train": {"objective": "autoregressive"}, "model": LEFT, "data": {"packing": "documents"}},
    "classes": {"train": {"objective": "autoregressive"}, "data": {"source": "digits", "length": 64},
                "model": LEFT | {"classes": 10, "conditioning": "constant"}},
    "other_ids": {"train": {"objective": "autoregressive"}, "model": LEFT},
    "converted": {"model": {"vocab_size": 259}},
}
TOKENIZERS = {"drift": LanguageTokenizer(16), "other_ids": LanguageTokenizer(16)}
FILES = {
    "empty.txt": "", "words.txt": "some words\n", "odd.txt": "x", "rows.jsonl": '{"prompt": "a", "completion": "b"}\n',
    "alone.jsonl": '{"prompt": "a"}\n', "empty.jsonl": "",
    "returns.py": "def get_config():\n    return 3\n",
    "section.py": "def get_config():\n    from mdlm_jax.config import default_config\n    config = default_config()\n"
                  "    with config.unlocked():\n        config.extra = 3\n    return config\n",
    "hf/config.json": (GOLDEN / "llada_ckpt/config.json").read_text(), "hf/model.safetensors": "",
    "raises.py": "def get_config():\n    return int('eight')\n", "latin.txt": "\udce4",
    "broken/config.json": "{", "other/config.json": '{"a": 1}', "bare/model.safetensors": "",
}

LINES = """
train | train --config | train --config=quickstart | train --config=AT/odd.txt | train --config=AT/returns.py
train --config=AT/section.py --dry_run | train --workdir=AT/broken --config=quickstart
train --workdir=AT/other --config=quickstart | train --distributed=a:1,2,5 --config=quickstart --workdir=AT/new
train --config=smdm:19,odd --dry_run | train --config=scaling:odd --dry_run | train --config=scaling:2x32,odd --dry_run
train --config.model.head_size=20 --config=oracle --dry_run --config.train.objective=levenshtein:1,2
 --config.model.attention=block_causal --config.model.block_length=8
train --config.data.length=999 --config=planner --config.train.init_from=AT/learned --dry_run
train --config.train.batch_size=1000 --config=llada_8b --dry_run --config.train.mesh=replica:4,fsdp:64
train --config=AT/raises.py --dry_run | train --profile=9:1 --config=quickstart --workdir=AT/new
train --config.train.twin=AT/hf {MARIA} | train --config.train.twin=AT/bytes {MARIA}
train --config.train.twin=AT/classes {MARIA} | train --config.data.length=32 --config.train.twin=AT/plain {MARIA}
train --config.train.twin=AT/other_ids {MARIA} | train --config.qqqq=no --config=quickstart --workdir=AT/new
train --config.data.tokenizer=AT/drift.json --config=quickstart --config.train.init_from=AT/bytes --dry_run
train --config.model.d_ff=24 --config=planner --config.train.init_from=AT/bytes --dry_run
train --config=reversal:odd --dry_run | train --config=smdm:20 --dry_run | train --config=planner:odd --dry_run
convert | convert --from=AT/bytes | convert --dtype=int8 --from=AT/bytes --to=AT/new
convert --preset=llada_8b --from=AT/other --to=AT/new | convert --from=AT/bare --to=AT/new
convert --to=AT/bytes --from=AT/bytes | convert --from=AT/none --to=AT/new | convert --to=gs://a/b --from=AT/bytes
distil | distil --config=sdtt | distil --config=sdtt --from=AT/bytes | distil --config=sdtt --from=AT/bytes --rounds=2
evaluate --checkpoint=AT/hf | evaluate --checkpoint=AT/converted | evaluate --text=held-out --checkpoint=AT/bytes
evaluate --judge=AT/hf --checkpoint=AT/bytes | evaluate --judge=AT/documents --checkpoint=AT/bytes
evolution --figure=AT/none/x.png --checkpoints=AT/bytes | local --processes=1 -- no_such_command_1
evaluate | evaluate --rows=-1 --checkpoint=AT/bytes | evaluate --samples=3 --checkpoint=AT/answers
evaluate --detokenizer=odd --text=AT/words.txt --checkpoint=AT/bytes | evaluate --detokenizer=lm1b --checkpoint=AT/bytes
evaluate --steps=3 --checkpoint=AT/blocks | evaluate --judge=oracle --checkpoint=AT/bytes
evaluate --judge=oracle --checkpoint=AT/drift | evaluate --judge=AT/odd.txt --checkpoint=AT/bytes
evaluate --judge=AT/causal --checkpoint=AT/drift | evaluate --floor=1 --checkpoint=AT/bytes
evaluate --task=odd --checkpoint=AT/bytes | evaluate --text=AT/none --checkpoint=AT/bytes
evaluate --block_length=-1 --task=decoders --judge=AT/causal --checkpoint=AT/bytes
evaluate --by=odd --task=decoders --judge=AT/causal --checkpoint=AT/bytes
evaluate --judge --task=decoders --checkpoint=AT/bytes | evaluate --task=decoders --checkpoint=AT/bytes
evaluate --judge=AT/causal,AT/causal --task=decoders --checkpoint=AT/bytes
evaluate --floor=2 --validation=AT/rows.jsonl --task=decoders --checkpoint=AT/bytes
evaluate --only=odd --judge=AT/causal --task=decoders --checkpoint=AT/bytes
evaluate --validation=AT/alone.jsonl --task=decoders --checkpoint=AT/bytes
evaluate --validation=AT/none.jsonl --task=decoders --checkpoint=AT/bytes
evolution | evolution --steps=0 --checkpoints=AT/bytes --figure=AT/x.png | evolution --checkpoints=AT/bytes
local | local --processes=0 -- ls | local --processes=2
plan | plan --config=llada_8b | plan --prompt=5 --config=llada_8b | plan --cache=none --config=llada_8b
plan --search --cache=none --step=decode --config=llada_8b | plan --cache=odd --step=decode --config=llada_8b
plan --per_forward=99 --cache=none --step=decode --config=llada_8b
plan --compile=-1 --config=llada_8b --topology=v5e:16x16 | plan --compile=2 --config=llada_8b --topology=v5e:16x16
plan --compile=2 --step=decode --config=llada_8b --topology=v5e:16x16
plan --tokens=0 --config=llada_8b --topology=v5e:16x16 | plan --efficiency=2 --config=llada_8b --topology=v5e:16x16
plan --topology=v9:4x4 --config=llada_8b | plan --topology=v5e:4 --config=llada_8b
plan --search --config=llada_8b --config.train.mesh=fsdp:-1 --topology=v5e:16x16
plan --config.train.lora_rank=4 --config=llada_8b --config.train.init_from=AT/hf --search --topology=v5e:16x16
plan --step=odd --config=llada_8b --topology=v5e:16x16 | plan --rows=3 --config=llada_8b --topology=v5e:16x16
plan --compile=1 --config=llada_8b --topology=h100:8x2 | plan --json=AT/none/x --config=llada_8b --topology=v5e:16x16
plan --picture=AT/x --config=llada_8b --topology=v5e:16x16 --search --compile=0
plan --rows=0 --step=decode --config=llada_8b --topology=v5e:16x16
plan --window=99999 --step=decode --config=llada_8b --topology=v5e:16x16
plan --rows=3 --step=decode --config=llada_8b --topology=v5e:16x16
plan --new_tokens=0 --step=decode --cache=none --config=llada_8b
plan --new_tokens=3 --step=decode --cache=none --config=llada_8b
plan --compile=0 --config=quickstart --config.train.batch_size=256 --topology=v5e:16x16
plan --topology=h100:16x8 --config=llada_8b
plan --topology=h100:8 --config=llada_8b | plan --num_slices=0 --config=llada_8b --topology=v5e:16x16
pods | pods odd | pods slurm | pods slurm --nodes=0 --name=a -- ls | pods slurm --name=a -- ls
pods slurm --time=long --name=a --nodes=2 -- ls | pods slurm --env=A --name=a --nodes=2 -- ls
pods slurm --name=a --nodes=2 | pods slurm --name=A --nodes=2 -- ls | pods ssh -- ls
pods slurm --sbatch.gres=gpu:8 --name=a --nodes=2 -- ls
pods ssh --hosts=a,-b -- ls | pods ssh --hosts=a,a -- ls | pods ssh --port=99999 --hosts=a -- ls
pods gke -- ls | pods tpu-vm --env=A=b --create --name=a --zone=z
pods gke --name=a -- ls | pods gke --name=a --topology=v5e:16x16 -- ls
pods gke --zone=z --name=a --topology=v5e:16x16 --image=i -- ls
pods gke --grace=9 --xpk=c --name=a --topology=v5e:16x16 --image=i -- ls
pods gke --xpk=c --name=a --topology=v5e:16x16 --image=i -- ls
pods gke --xpk=c --zone=z --name=a --topology=v5e:2x16 --image=i -- ls
pods gke --topology=h100:8x2 --name=a --image=i -- ls
pods tpu-vm -- ls | pods tpu-vm --name=a -- ls | pods tpu-vm --spot --name=a --zone=z -- ls
pods tpu-vm --create --name=a --zone=z | pods tpu-vm --accelerator=v --create --name=a --zone=z
pods tpu-vm --accelerator=v5p-512 --create --name=a --zone=z
pods tpu-vm --version=v2-alpha-tpuv5-lite --accelerator=v5p-512 --create --name=a --zone=z
pods tpu-vm --folder=~/a --name=a --zone=z -- ls | pods ssh --hosts=a -- ~/ls | pods ssh --hosts=a -- source x
pods ssh --hosts=a -- bash -c mdlm-train | pods ssh --hosts=a -- A=1 ls | pods slurm --name=a --nodes=2 -- srun ls
pods ssh --hosts=a,b -- mdlm-tasks --output=a | pods ssh --hosts=a,b -- mdlm-tasks --output=/tmp/a
pods ssh --hosts=a,b -- mdlm-tasks --output=gs://a/b
prepare --source=gs://a/b --out=AT/new
prepare | prepare --source=stdlib | prepare --workers=0 --source=stdlib --out=AT/new | prepare --verify
prepare --out=gs://a/b --source=stdlib | prepare --workers=2 --verify --out=AT/new
prepare --shards=0 --source=stdlib --out=AT/new | prepare --source=a,,b --out=AT/new
prepare --source=AT/words.txt,AT/words.txt --out=AT/new | prepare --source=AT/none* --out=AT/new
sample | sample --prompts=AT/words.txt --checkpoint=AT/bytes | sample --prompt_field=x --checkpoint=AT/bytes
sample --prompt=a --prompts=AT/words.txt --checkpoint=AT/bytes | sample --decoder=odd --checkpoint=AT/bytes
sample --eta=1 --decoder=threshold --checkpoint=AT/bytes | sample --mesh=rows:2 --checkpoint=AT/bytes
sample --new_tokens=0 --checkpoint=AT/bytes | sample --length=1 --checkpoint=AT/bytes
sample --output=AT/x.png --checkpoint=AT/bytes | sample --output=AT/x.npz --checkpoint=AT/bytes
sample --prompts=AT/empty.txt --checkpoint=AT/bytes --output=AT/x.jsonl
sample --temperature=-1 --checkpoint=AT/bytes | sample --prompts=AT/latin.txt --checkpoint=AT/bytes
sample --picture=AT/x.txt --checkpoint=AT/bytes | sample --length=4 --prompt=words --checkpoint=AT/bytes
sample --guidance=1 --prompt=a --checkpoint=AT/causal | sample --stop=x --checkpoint=AT/hf
sample --picture=AT/bytes --checkpoint=AT/bytes | sample --qqqq=no --checkpoint=AT/bytes
sample --defer=x --decoder=low_confidence --checkpoint=AT/bytes
sample --checkpoint=AT/none | sample --checkpoint=AT/other | sample --prompt=x --checkpoint=AT/drift
sample --length=32 --output=AT/x.png --checkpoint=AT/digits | sample --guidance=1 --prompt=a --checkpoint=AT/uniform
sample --labels=99 --checkpoint=AT/digits | sample --label=1 --labels=1 --checkpoint=AT/digits
scaling --config=odd | scaling --config.train.steps=3 --config=scaling
scaling --efficiency=2 --dry_run --config=scaling
scaling --config=scaling | scaling --budgets=1e12,1e12 --config=scaling | scaling --budgets=x --config=scaling
scaling --families=masked,masked --config=scaling | scaling --sizes=odd --budgets=1e12 --config=scaling --dry_run
scaling | scaling --config=quickstart
tasks | tasks --task=odd --checkpoint=AT/bytes | tasks --checkpoint=AT/bytes | tasks --task=match --checkpoint=AT/bytes
tasks --limit=0 --task=match --checkpoint=AT/bytes --data=AT/rows.jsonl
tasks --task=match --checkpoint=AT/bytes --data=AT/rows.jsonl | tasks --records=AT/r.jsonl --task=match
tasks --records=AT/r.jsonl --task=match --data=AT/rows.jsonl | tasks --make=AT/r.jsonl --task=match
tasks --items=0 --make=AT/r.jsonl --task=sudoku | tasks --checkpoint=AT/bytes --make=AT/r.jsonl --task=sudoku
tasks --shots=-1 --task=match --checkpoint=AT/bytes --data=AT/rows.jsonl
tasks --shots=9 --shots_from=AT/rows.jsonl --task=match --checkpoint=AT/bytes --data=AT/rows.jsonl
tasks --data=AT/empty.jsonl --task=match --checkpoint=AT/bytes | tasks --data=AT/none --task=match --checkpoint=AT/bytes
tradeoff | tradeoff --few=3 --steps=4 --checkpoints=AT/bytes | tradeoff --checkpoints=AT/none*
tradeoff --by=odd --checkpoints=AT/bytes | tradeoff --figure=AT/x.txt --checkpoints=AT/bytes
trajectories | trajectories --checkpoint=AT/bytes | trajectories --num=1 --checkpoint=AT/bytes --output=AT/new
trajectories --suppress=a --checkpoint=AT/bytes --output=AT/new
trajectories --prompt_field=x --checkpoint=AT/bytes --output=AT/new
trajectories --length=999999 --checkpoint=AT/bytes --output=AT/new
"""
MARIA = "--config=maria --config.train.init_from=AT/bytes --dry_run"
CASES = [line.strip().replace("{MARIA}", MARIA) for part in LINES.replace("\n ", " ").split("\n")
         for line in part.split("|") if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of every kind, and runs without weights, whose configurations are what commands look at first."""
    folder = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, errors="surrogateescape")
    for name, fields in RUNS.items():
        TOKENIZERS.get(name, ByteTokenizer()).save(folder / f"{name}.json")
        files = {"config.json": json.dumps(to_dict(_config(fields))),
                 "tokenizer.json": (folder / f"{name}.json").read_bytes()}
        state = {"trainable": {"network": {"w": jax.numpy.zeros(1)}}}
        meta = {"family": "llada"} if name == "converted" else {}
        Checkpoints(folder / name / "checkpoints").save(1, state, meta, files)
    return folder


def _config(fields: dict) -> RunConfig:
    return freeze({name: dataclasses.asdict(getattr(RunConfig(), name)) | own for name, own in fields.items()})


@pytest.mark.parametrize("line", CASES)
def test_a_mistake_is_one_line_that_names_the_flag_and_the_remedy(line, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    name, *words = line.replace("AT", str(place)).split()
    module = "pods.__main__" if name == "pods" else name
    assert importlib.import_module(f"launch.{module}").main(words) == 2
    found = capsys.readouterr()
    said = found.err.removeprefix("error: ").strip()
    assert found.err.startswith("error: ") and len(found.err.splitlines()) == 1 and not found.out
    assert not faults(said), said
    flag = next((word for word in words if word.startswith("--") and word != "--"), "")
    if "is missing" not in said and ", --" not in said and flag.partition("=")[2]:
        assert flag.partition("=")[2].partition(",")[0] in said


@pytest.mark.parametrize(("length", "noted"), [(64, True), (RunConfig().data.length, False)])
def test_rows_of_another_length_than_the_network_knows_are_noted(length, noted, place, capsys):
    command = ["--config=planner", f"--config.train.init_from={place / 'bytes'}", f"--config.data.length={length}"]
    assert importlib.import_module("launch.train").main([*command, "--dry_run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("note     data.length=64: the network of train.init_from was trained on rows of") == noted
    assert said.splitlines()[-1].startswith("all right: ")
