"""The loop in one process: which records it makes, what it refuses, and that an interrupted run loses nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.data.pipeline import Pipeline
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training import hosts, metrics, trainer
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.trainer import NonFiniteLoss, Trainer
from tests.marks import slow_unless
from tests.training import tiny

SPEED = {"time", "step_seconds", "step_seconds_p50", "step_seconds_p95", "tokens_per_second", "flops_per_second", "mfu",
         "memory/host_peak"}


class Stop(Exception):
    """What interrupts a run in these tests."""


@pytest.fixture(autouse=True)
def no_measurement_of_the_machine(monkeypatch):
    monkeypatch.setattr(trainer, "matmul_ceiling", lambda dtype: 1e9)


def make(workdir, seed=0, **train):
    rows = np.random.default_rng(seed).integers(0, 256, (20, tiny.LENGTH))
    pipeline = Pipeline(rows, batch_size=4, seed=0, packing="concat", tokenizer=ByteTokenizer())
    network = TransformerConfig(259, 259, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32)
    process = Process(259, 256)
    settings = {"steps": 8, "log_every": 1, "checkpoint_every": 3, "warmup_steps": 2, "ema_decay": 0.5} | train
    mesh = make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    config = TrainConfig(batch_size=4, **settings)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    objective = CountObjective(network, process)
    return Trainer(config, objective, pipeline, mesh, workdir, checkpoints, {"config.json": "{}"}, 4)


def evaluate(params):
    return {"eval/size": float(np.abs(np.asarray(params["network"]["head"])).sum())}


def records(workdir, *names):
    """The records that have the first of ``names``: (step, values)."""
    found = [record for record in metrics.read(workdir) if names[0] in record]
    return [(record["step"], *(record[name] for name in names)) for record in found]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "matmul_ceiling", lambda dtype: 1e9)
        state = make(workdir).run(evaluate)
    return workdir, jax.device_get(state)


def test_records_and_checkpoints(uninterrupted):
    workdir, state = uninterrupted
    assert [step for step, _ in records(workdir, "loss")] == list(range(1, 9))
    assert [step for step, _ in records(workdir, "eval/size")] == [4, 8]
    assert Checkpoints(workdir / "checkpoints").steps() == [6, 8]  # the two newest of 3, 6 and 8
    assert int(state.step) == 8
    last = records(workdir, "loss", "learning_rate", "grad_norm", "update_norm", "loss/diffusion")[-1]
    assert last[2] == pytest.approx(3e-5) and last[1] == pytest.approx(last[5])  # a tenth of the peak; its only term
    sizes = dict(records(workdir, "eval/size"))
    assert sizes[8] == pytest.approx(evaluate(state.ema)["eval/size"])  # the averaged weights are measured
    assert sizes[8] != evaluate(state.trainable)["eval/size"]


def test_losses_by_noise_level_add_up_to_the_loss(uninterrupted):
    """Batches of four rows at stratified levels: one in each quarter, so the mean of the quarters is the loss."""
    for record in metrics.read(uninterrupted[0]):
        quarters = [record[name] for name in record if name.startswith("loss_by_level/")]
        if "loss" in record:
            assert len(quarters) == 4 and np.mean(quarters) == pytest.approx(record["loss"], rel=1e-5)


def test_the_percentiles_are_of_steps_and_not_of_their_dispatch(uninterrupted):
    """Windows of one step: it is its own median."""
    found = records(uninterrupted[0], "step_seconds", "step_seconds_p50", "step_seconds_p95")
    assert [step for step, *_ in found] == list(range(2, 9))  # the first compiles
    for _, mean, median, most in found:
        assert median == most == pytest.approx(mean)


def test_windows_average_their_steps_and_end_at_checkpoints(uninterrupted, tmp_path):
    each = dict(records(uninterrupted[0], "loss"))
    make(tmp_path, log_every=4).run(evaluate)
    windows = {3: [1, 2, 3], 4: [4], 6: [5, 6], 8: [7, 8]}
    found = dict(records(tmp_path, "loss"))
    assert list(found) == list(windows)
    for end, steps in windows.items():
        assert found[end] == pytest.approx(np.mean([each[step] for step in steps]), rel=1e-6)
    errors = dict(records(tmp_path, "loss_stderr"))
    assert errors[3] == pytest.approx(np.std([each[1], each[2], each[3]], ddof=1) / 3**0.5, rel=1e-5)
    assert set(errors) == {3, 6, 8}


@pytest.mark.parametrize("log_every", slow_unless([1, 4], 1))
def test_an_interrupted_run_goes_on_bit_for_bit(log_every, uninterrupted, tmp_path):
    """Interrupted in step 4, after the checkpoint of step 3; step 4's record is made again."""
    def interrupt(params):
        raise Stop

    reference, expected = uninterrupted
    with pytest.raises(Stop):
        make(tmp_path, log_every=log_every).run(interrupt)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]
    assert records(tmp_path, "loss")[-1][0] == 4
    state = make(tmp_path, log_every=log_every).run(evaluate)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    if log_every == 1:
        names = ("loss", "grad_norm", "update_norm", "learning_rate")
        assert records(tmp_path, *names) == records(reference, *names)
    assert records(tmp_path, "eval/size") == records(reference, "eval/size")


def test_a_finished_run_only_gives_its_state_back(uninterrupted):
    workdir, expected = uninterrupted
    before = metrics.read(workdir)
    state = make(workdir).run(lambda params: pytest.fail("nothing to evaluate"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    assert metrics.read(workdir) == before


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    """Step 1 makes the weights huge, step 2 meets them: its checkpoint must not be written, whatever log_every is."""
    run = make(tmp_path, learning_rate=1e30, warmup_steps=0, checkpoint_every=1, log_every=100, max_bad_steps=1)
    with pytest.raises(NonFiniteLoss, match="not finite at step 2, 1 time.* start another --workdir"):
        run.run(evaluate)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]


@pytest.mark.parametrize("bad", slow_unless([{3}, {2, 3, 5}], {2, 3, 5}))
def test_steps_that_are_not_finite_are_skipped_and_counted(bad, tmp_path, monkeypatch):
    """Their gradients are broken on purpose: the weights stay, the next good step is taken from them."""
    whole = CountObjective.loss

    def broken(self, trainable, batch, key, rows, total_rows):
        parts = whole(self, trainable, batch, key, rows, total_rows)
        poison = jnp.where(jnp.isin(batch["positions"][0, 0], jnp.asarray(sorted(bad))), jnp.nan, 1.0)
        return dataclasses.replace(parts, terms={name: term * poison for name, term in parts.terms.items()})

    monkeypatch.setattr(CountObjective, "loss", broken)
    run = make(tmp_path, log_every=1, max_bad_steps=3)
    steps, place = iter(range(1, 100)), hosts.place
    monkeypatch.setattr(hosts, "place", lambda batch, *rest: place(
        batch | {"positions": np.full_like(batch["positions"], next(steps))}, *rest))
    state = run.run(evaluate)
    assert int(state.step) == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    assert {step for step, _ in records(tmp_path, "skipped_steps")} == bad
    assert {step for step, loss in records(tmp_path, "loss") if not np.isfinite(loss)} == bad


def test_other_data_is_refused(uninterrupted):
    with pytest.raises(ConfigError, match="was trained on other data"):
        make(uninterrupted[0], seed=1).run(evaluate)


@pytest.mark.slow
def test_block_lengths_change_on_the_way_and_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Lengths 1, 8, 1 and 4: three compilations, whole or stopped inside the second stage."""
    compiled = []
    original = trainer.make_train_step
    monkeypatch.setattr(trainer, "make_train_step", lambda objective, *rest: (
        compiled.append(objective.network.block_length), original(objective, *rest))[1])

    def scheduled(workdir):
        plain = make(workdir)
        network = dataclasses.replace(plain.objective.network, attention="two_stream", block_length=4)
        sizes = ((1, 2), (8, 2), (1, 2), (4, 0))
        return dataclasses.replace(plain, objective=BlockObjective(network, plain.objective.process, sizes=sizes))

    def stopping(params):
        raise Stop

    whole = jax.device_get(scheduled(tmp_path / "whole").run(evaluate))
    assert compiled == [1, 8, 4]
    with pytest.raises(Stop):
        scheduled(tmp_path / "stopped").run(stopping)  # at step 4, after the checkpoint of step 3
    compiled.clear()
    again = jax.device_get(scheduled(tmp_path / "stopped").run(evaluate))
    assert compiled == [8, 1, 4]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), again, whole)
    flops = dict(records(tmp_path / "whole", "flops_per_second"))
    speed = dict(records(tmp_path / "whole", "tokens_per_second"))
    assert 1 not in speed and 3 not in speed and 7 not in speed  # steps that compile are not timed
    per_token = {step: flops[step] / speed[step] for step in speed}
    assert per_token[2] == pytest.approx(per_token[6]) and per_token[4] < 0.8 * per_token[2]
