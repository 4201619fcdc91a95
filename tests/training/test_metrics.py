import json
import math
import random
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.training import metrics
from mdlm_jax.training.metrics import MetricsWriter


def steps(workdir):
    return [record["step"] for record in metrics.read(workdir)]


def test_records_come_back_bit_for_bit(tmp_path):
    rng = random.Random(0)
    values = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(200)] + [0.1, 1e-323, -0.0, 1 / 3, 2.0]
    with MetricsWriter(tmp_path) as writer:
        for step, value in enumerate(values):
            writer.write(step, loss=value, tokens=step * 10**12, good=step % 2 == 0)
    for step, (record, value) in enumerate(zip(metrics.read(tmp_path), values, strict=True)):
        assert list(record) == ["step", "time", "loss", "tokens", "good"]
        assert (record["step"], record["tokens"], record["good"]) == (step, step * 10**12, step % 2 == 0)
        assert type(record["loss"]) is float and type(record["tokens"]) is int and type(record["good"]) is bool
        if math.isnan(value):
            assert math.isnan(record["loss"])
        else:
            assert struct.pack("<d", record["loss"]) == struct.pack("<d", value)
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == len(values)
    assert metrics.read(tmp_path / "nothing") == []


def test_lines_are_strict_json_and_not_finite_floats_are_words(tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    with MetricsWriter(tmp_path) as writer:
        writer.write(1, a=math.nan, b=math.inf, c=-np.float32("inf"), **{"train/loss": 1.5})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    raw = json.loads(line, parse_constant=refuse)
    assert (raw["a"], raw["b"], raw["c"], raw["train/loss"]) == ("NaN", "Infinity", "-Infinity", 1.5)
    (record,) = metrics.read(tmp_path)
    assert math.isnan(record["a"]) and (record["b"], record["c"]) == (math.inf, -math.inf)


def test_numpy_and_jax_scalars_are_exact(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        tenth = dict(a=jnp.float32(0.1), b=np.float32(0.1), c=jnp.bfloat16(0.1))
        writer.write(np.int64(3), **tenth, d=jnp.int32(7), e=np.bool_(True))
    (record,) = metrics.read(tmp_path)
    assert record["a"] == record["b"] == float(np.float32(0.1)) and record["c"] == float(jnp.bfloat16(0.1))
    assert (record["step"], record["d"], record["e"]) == (3, 7, True)


@pytest.mark.parametrize("value", [jnp.ones(2), np.ones((1,)), "fast", None, 1j, [1.0]])
def test_what_is_no_number_is_refused_and_leaves_no_line(tmp_path, value):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(TypeError, match="speed"):
            writer.write(1, speed=value)
        with pytest.raises(TypeError, match="time"):
            writer.write(1, time=3.0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_resuming_removes_what_is_beyond_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(0, 60, 10):
            writer.write(step, loss=float(step))
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with MetricsWriter(tmp_path, resume_step=30) as writer:
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:4]
        writer.write(40, loss=-1.0)
    assert steps(tmp_path) == [0, 10, 20, 30, 40]
    assert metrics.read(tmp_path)[-1]["loss"] == -1.0
    with MetricsWriter(tmp_path, resume_step=0):
        assert steps(tmp_path) == [0]
    with MetricsWriter(tmp_path):
        assert steps(tmp_path) == []


def test_every_torn_end_is_repaired(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=math.nan)
        writer.write(2, loss=0.25)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = [1, 2] if length == len(whole) else [1] if length >= first else []
        assert steps(tmp_path) == complete
        with MetricsWriter(tmp_path, resume_step=2) as writer:
            writer.write(3, loss=1.0)
        assert steps(tmp_path) == [*complete, 3], length
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "3"}', "", "\xff"])
def test_a_line_that_is_no_record_is_named_and_the_file_is_left_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = ('{"step": 1}\n' + line + '\n{"step": 2}\n').encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="line 2 is no metrics record"):
        MetricsWriter(tmp_path, resume_step=5)
    assert path.read_bytes() == content


def test_a_killed_program_loses_no_record(tmp_path):
    code = (
        "import os, signal, sys; from mdlm_jax.training.metrics import MetricsWriter;"
        "w = MetricsWriter(sys.argv[1]);"
        "[w.write(s, loss=0.5) for s in range(100)];"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert steps(tmp_path) == list(range(100))


def board_scalars(workdir):
    """The scalars of all TensorBoard files, read with tensorboardX's own protobuf: (tag, step, value), and purges."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, purged = [], []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                purged.append(event.step)
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return scalars, purged


def test_tensorboard_gets_the_same_numbers_and_forgets_what_is_beyond_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=0.5, **{"eval/bound": 2.0})
        writer.flush()
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, loss=0.25)
    scalars, purged = board_scalars(tmp_path)
    assert sorted(scalars) == [("eval/bound", 1, 2.0), ("loss", 1, 0.5), ("loss", 2, 0.25)]
    assert purged[-1] == 2
