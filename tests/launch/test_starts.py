"""Starts that fail, and what follows them, in real processes: what they say and what they leave behind."""

import json
import math
import random
import re
import resource

import jax
import pytest

from launch._memory import enough_memory
from mdlm_jax.config import ConfigError
from mdlm_jax.training import metrics
from tests.launch.commands import ROOT, run

SETTINGS = {
    "data.length": 16, "model.layers": 1, "model.d_model": 16, "model.heads": 2, "train.steps": 4,
    "train.batch_size": 4, "train.warmup_steps": 0, "train.log_every": 1, "train.checkpoint_every": 2,
    "eval.every": 100, "eval.rows": 4, "eval.final_rows": 4, "sample.num": 2, "sample.steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """100 kB of numbered paragraphs."""
    rng = random.Random(0)
    words = ["mask", "token", "noise", "time", "clean", "bound", "count", "pair", "row"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n}: {' '.join(rng.choices(words, k=12))}\n\n" for n in range(1500)))
    return path


def train(text, workdir, **changes):
    """``train_steps=3`` sets train.steps."""
    fields = SETTINGS | {"data.source": text, "data.tokenizer": "byte", "data.valid_fraction": 0.3}
    fields |= {name.replace("_", ".", 1): value for name, value in changes.items()}
    recipe = text.parent / "plain.py"
    recipe.write_text("from mdlm_jax.config import default_config as get_config\n")
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return run("launch.train", f"--config={recipe}", f"--workdir={workdir}", *flags, cwd=ROOT)


def assert_one_line(result, *fragments):
    """Status 2, no traceback, and an error at the end of stderr, where progress may have been told before."""
    assert result.status == 2 and "Traceback" not in result.err, result
    error = result.err.splitlines()[-1]
    assert error.startswith("error: ") and len(error) < 450
    for fragment in fragments:
        assert fragment in error


@pytest.mark.slow
def test_the_life_of_a_workdir(text, tmp_path):
    """The loss is not finite at step 2; the same workdir then takes another learning rate, and refuses a third.

    It is sampled from. When its last checkpoint is damaged, the run goes on from the one before, and says so once.
    """
    workdir = tmp_path / "runs" / "first"
    failed = train(text, workdir, train_learning_rate=1e30, train_max_bad_steps=1)
    assert_one_line(failed, "not finite at step 2, 1 time(s) in a row", "start again with a lower train.learning_rate")
    old = (workdir / "metrics.jsonl").read_bytes()
    done = train(text, workdir, train_learning_rate=1e-3)
    assert done.status == 0, done
    assert f"{workdir} held another run without a checkpoint; its files are now in {workdir}/earlier-1" in done.out
    assert (workdir / "earlier-1" / "metrics.jsonl").read_bytes() == old
    assert json.loads((workdir / "earlier-1" / "config.json").read_text())["train"]["learning_rate"] == 1e30
    assert [record["step"] for record in metrics.read(workdir) if "loss" in record] == [1, 2, 3, 4]
    samples = json.loads((workdir / "summary.json").read_text())["samples"]
    assert 0 < samples["unigram_entropy"] <= math.log(16) and samples["num"] == 2 and samples["top_k"] == 0
    natural = samples["unigram_entropy_of_held_out_rows"]
    assert f"unigram entropy: {samples['unigram_entropy']:.3f} nats a sample, {natural:.3f} a held-out row" in done.out
    assert_one_line(train(text, workdir, train_learning_rate=1e-2), "holds another run", "train.learning_rate is 0.001")

    drawn = run("launch.sample", f"--checkpoint={workdir}", "--prompt=mask ", "--guidance=0.5", "--top_k=1", "--num=2",
                "--steps=1")
    assert drawn.status == 0 and re.fullmatch(r"unigram entropy: \d\.\d{3} nats a sample", drawn.err), drawn
    first, second = re.findall(r"--- sample \d ---\n(mask (?s:.*?))\n(?=---|\Z)", drawn.out)
    assert first == second  # all at once and of one candidate, draws are equal

    (workdir / "checkpoints" / "00000004" / "config.json").write_text("{}")
    resumed = train(text, workdir, train_learning_rate=1e-3)
    assert resumed.status == 0 and "resuming from step 2 " in resumed.out
    told = [line for line in (resumed.out + resumed.err).splitlines() if "passed over" in line]
    assert len(told) == 1 and "00000004 is passed over: size of config.json is 2" in told[0]


def test_a_start_that_fails_on_its_text_leaves_no_folder(text, tmp_path):
    """The file has four rows, but not without those that are held out, which is known when it has been read."""
    result = train(text, tmp_path / "runs" / "first", data_length=text.stat().st_size // 4)
    assert_one_line(result, f"{text.stat().st_size:,} bytes", "4 training rows", "data.length", "there are 2 and 1")
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_cluster_here(tmp_path):
    result = run("launch.train", "--config=quickstart", f"--workdir={tmp_path / 'run'}", "--distributed=auto")
    assert_one_line(result, "--distributed=auto: no cluster is found here", "HOST:PORT,N,I")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_one_line_with_the_remedies(text, tmp_path):
    """A matrix of 2^34 numbers does not fit into an address space that is limited to 32 GiB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, before[1]))  # the child inherits it
    try:
        result = train(text, tmp_path / "big", model_d_model=1 << 17, model_heads=1, model_d_ff=64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    remedies = ("train.batch_size", "train.microbatches", "model.remat=full", "train.head_budget")
    assert_one_line(result, "out of memory", "RESOURCE_EXHAUSTED", *remedies)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: lower --num (the host has no more)"),
        (MemoryError("Unable to allocate 8. TiB\nmore"), "out of memory: lower --num (Unable to allocate 8. TiB)"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "(RESOURCE_EXHAUSTED: Out of memory)"),
        (jax.errors.JaxRuntimeError("INTERNAL: ran into RESOURCE_EXHAUSTED"), None),
        (ValueError("RESOURCE_EXHAUSTED"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_only_a_lack_of_memory_becomes_one_line(error, said):
    with pytest.raises(ConfigError if said else type(error)) as caught, enough_memory("lower --num"):
        raise error
    assert said in str(caught.value) if said else caught.value is error
