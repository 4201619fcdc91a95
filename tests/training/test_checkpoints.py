import json
import logging
import os
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mdlm_jax.config import ConfigError
from mdlm_jax.training import checkpoints, manifest
from mdlm_jax.training.checkpoints import Checkpoints

FILES = {"tokenizer.json": '{"kind": "byte"}', "config.json": b"{}"}


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def state(scale=1.0):
    """Every kind of leaf that a training state may have, in every kind of container."""
    eight = mesh(fsdp=8)
    table = jax.device_put(scale * jnp.arange(96.0).reshape(16, 6) / 7, NamedSharding(eight, PartitionSpec("fsdp")))
    params = {"table": table, "block": {"scale": jnp.full((3,), scale / 3, jnp.bfloat16), "w.0": jnp.eye(3)}}
    return {
        "params": params,
        "opt": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "step": jnp.int32(5),
        "seen": jnp.array([True, False]),
    }


def abstract_of(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        if jnp.issubdtype(e.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(e)
            a, e = jax.random.key_data(a), jax.random.key_data(e)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()  # bit for bit


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 10 and 20, not to be changed; ``copy`` gives one that may be."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    keeper = Checkpoints(folder, keep=2)
    for step in (10, 20):
        keeper.save(step, state(step), {"position": step, "fingerprint": "abc"}, FILES)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def flip_bit(path, rng):
    data = bytearray(path.read_bytes())
    bit = rng.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def test_round_trip_gives_every_bit_the_structure_and_the_record(saved):
    restored = Checkpoints(saved).restore(abstract_of(state()))
    assert (restored.step, restored.path, restored.passed_over) == (20, saved / "00000020", [])
    assert restored.meta == {"position": 20, "fingerprint": "abc"}
    assert_same(restored.tree, state(20))
    assert restored.tree["params"]["table"].sharding.spec == PartitionSpec("fsdp")
    assert jax.random.bits(restored.tree["key"]) == jax.random.bits(jax.random.key(7))


def test_layout_on_disk(saved):
    assert sorted(os.listdir(saved)) == ["00000010", "00000020"]
    assert sorted(os.listdir(saved / "00000020")) == sorted(["state", "meta.json", "manifest.json", *FILES])
    assert checkpoints.read_file(saved / "00000020", "tokenizer.json") == b'{"kind": "byte"}'
    assert checkpoints.read_meta(saved / "00000010")["position"] == 10
    assert json.loads(checkpoints.read_file(saved / "00000010", "meta.json"))["versions"]["jax"] == jax.__version__
    with pytest.raises(ConfigError, match="has no vocab.txt"):
        checkpoints.read_file(saved / "00000020", "vocab.txt")


def test_restores_onto_another_mesh(saved):
    square = mesh(replica=2, tensor=4)
    wanted = abstract_of(state(), NamedSharding(square, PartitionSpec()))
    table = NamedSharding(square, PartitionSpec("tensor", "replica"))
    wanted["params"]["table"] = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=table)
    restored = Checkpoints(saved).restore(wanted).tree
    assert_same(restored, state(20))
    assert restored["params"]["table"].sharding == table
    assert restored["params"]["table"].addressable_shards[0].data.shape == (4, 3)
    assert restored["keys"].sharding.is_fully_replicated and len(restored["keys"].sharding.device_set) == 8


def test_abstract_describes_the_state_without_its_code_and_restores_it(saved):
    described = checkpoints.abstract(saved / "00000020")
    assert described["params"]["table"].shape == (16, 6)
    assert described["opt"]["1"]["0"]["mu"]["block"]["scale"].dtype == jnp.bfloat16
    assert described["key"].dtype == jax.random.key(0).dtype
    assert len(jax.tree.leaves(described)) == len(jax.tree.leaves(state()))
    tree = checkpoints.restore_path(saved / "00000020", described).tree
    assert_same(tree["params"], state(20)["params"])
    assert {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()} == {jax.local_devices()[0]}


def test_partial_restore_reads_only_what_is_named(saved):
    wanted = {"params": abstract_of(state())["params"]}
    tree = checkpoints.restore_path(saved / "00000010", wanted, partial=True).tree
    assert_same(tree, {"params": state(10)["params"]})
    with pytest.raises(ConfigError, match="opt/1/0/count is in the checkpoint only"):
        checkpoints.restore_path(saved / "00000010", wanted)


def changed(edit):
    wanted = abstract_of(state())
    edit(wanted)
    return wanted


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.update(step=jax.ShapeDtypeStruct((), jnp.float32)), r"step is int32\[\] .* and float32\[\]"),
        (lambda t: t["params"].update(table=jax.ShapeDtypeStruct((16, 7), jnp.float32)), r"params/table .*\[16,6\]"),
        (lambda t: t.update(key=jax.ShapeDtypeStruct((2,), jnp.uint32)), r"key is key<fry>\[\] .* uint32\[2\]"),
        (lambda t: t.update(key=jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))), r"key is key<fry>.* key<rbg>"),
        (lambda t: t.update(more=t["step"]), "more is not in the checkpoint"),
        (lambda t: t.pop("seen"), "seen is in the checkpoint only"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_that_names_the_array(saved, edit, message):
    with pytest.raises(ConfigError, match=message):
        Checkpoints(saved).restore(changed(edit))


def every_file(saved):
    step = saved / "00000020"
    return sorted(p.relative_to(step) for p in step.rglob("*") if p.is_file() and p.stat().st_size)


def test_a_flipped_bit_in_any_file_falls_back_and_names_the_file(saved, copy, caplog):
    rng = random.Random(1)
    wanted = abstract_of(state())
    names = every_file(saved)
    assert {"tokenizer.json", "meta.json", "manifest.json"} < {str(n) for n in names} and len(names) > 8
    for name in names:
        flip_bit(copy / "00000020" / name, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            keeper = Checkpoints(copy)
            good = keeper.latest_good()
        assert good == copy / "00000010", name
        ((step, reason),) = keeper.passed_over
        assert step == 20 and str(name) in reason
        assert "00000020" in caplog.text and reason in caplog.text
        shutil.copy(saved / "00000020" / name, copy / "00000020" / name)
    assert Checkpoints(copy).latest_good() == copy / "00000020"
    flip_bit(copy / "00000020" / "tokenizer.json", rng)
    restored = Checkpoints(copy).restore(wanted)
    assert restored.step == 10 and restored.passed_over[0][0] == 20
    assert_same(restored.tree, state(10))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda step: os.truncate(step / "meta.json", 20), "size of meta.json is 20"),
        (lambda step: (step / "manifest.json").unlink(), "no manifest.json: the save never finished"),
        (lambda step: (shutil.rmtree(step), step.mkdir()), "no manifest.json: the save never finished"),
        (lambda step: shutil.rmtree(step / "state"), "missing file state/"),
        (lambda step: (step / "state" / "commit_success.txt").unlink(), "missing file state/commit_success.txt"),
    ],
)
def test_damage_falls_back_to_the_previous_step_and_says_why(copy, damage, reason):
    damage(copy / "00000020")
    restored = Checkpoints(copy).restore(abstract_of(state()))
    assert restored.step == 10
    assert restored.passed_over[0][0] == 20 and reason in restored.passed_over[0][1]
    with pytest.raises(ConfigError, match=reason):
        checkpoints.restore_path(copy / "00000020", abstract_of(state()))


def test_stray_directories_are_neither_steps_nor_in_the_way(copy):
    shutil.copytree(copy / "00000020", copy / "00000030.unfinished")
    (copy / "00000040.unfinished" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (copy / "00000005.removed").mkdir()
    (copy / "mine").mkdir()
    keeper = Checkpoints(copy)
    assert keeper.steps() == [10, 20]
    assert keeper.restore(abstract_of(state())).step == 20
    keeper.save(30, {"a": jnp.ones(2)}, {}, {})
    assert sorted(os.listdir(copy)) == ["00000020", "00000030", "mine"]


def test_files_are_hashed_once_and_a_damaged_step_is_told_of_once(copy, caplog, monkeypatch):
    hashed = []
    verify = manifest.verify
    monkeypatch.setattr(manifest, "verify", lambda path, *rest: hashed.append(path.name) or verify(path, *rest))
    (copy / "00000020" / "meta.json").write_text("{}")
    keeper = Checkpoints(copy)
    assert keeper.latest_good() == keeper.latest_good() == copy / "00000010"
    restored = keeper.restore(abstract_of(state()))
    assert restored.step == 10 and [step for step, _ in restored.passed_over] == [20]
    checkpoints.restore_path(copy / "00000010", abstract_of(state()), verified=True)
    assert hashed == ["00000020", "00000010"] and len(caplog.records) == 1
    checkpoints.restore_path(copy / "00000010", abstract_of(state()))
    assert hashed[2:] == ["00000010"]


def test_nothing_to_restore_is_none_and_all_damaged_is_none_with_reasons(tmp_path, copy):
    assert Checkpoints(tmp_path / "new").restore({}) is None
    for step in ("00000010", "00000020"):
        (copy / step / "manifest.json").unlink()
    keeper = Checkpoints(copy)
    assert keeper.restore(abstract_of(state())) is None
    assert [step for step, _ in keeper.passed_over] == [20, 10]


def test_keep_policy_counts_only_whole_steps(tmp_path):
    keeper = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        keeper.save(step, {"a": jnp.full(2, step)}, {}, {})
    assert keeper.steps() == [2, 3]
    flip_bit(tmp_path / "00000003" / "meta.json", random.Random(0))
    resumed = Checkpoints(tmp_path, keep=2)
    assert resumed.restore(checkpoints.abstract(tmp_path / "00000002")).step == 2
    resumed.save(4, {"a": jnp.full(2, 4)}, {}, {})  # 3 is damaged: were it counted, 2 would be gone
    assert resumed.steps() == [2, 4]
    assert [manifest.verify(resumed.path(s)) for s in (2, 4)] == [[], []]
    one = Checkpoints(tmp_path, keep=1)
    one.save(5, {"a": jnp.full(2, 5)}, {}, {})
    assert one.steps() == [5]
    one.save(3, {"a": jnp.full(2, 3)}, {}, {})  # what has just been written is never what goes
    assert 3 in one.steps()


def test_a_damaged_step_is_written_anew_and_a_whole_one_is_not_overwritten(copy):
    before = (copy / "00000020" / "meta.json").read_bytes()
    keeper = Checkpoints(copy)
    with pytest.raises(FileExistsError, match="is a whole checkpoint already"):
        keeper.save(20, {"a": jnp.ones(2)}, {}, {})
    assert (copy / "00000020" / "meta.json").read_bytes() == before
    flip_bit(copy / "00000020" / "manifest.json", random.Random(0))
    assert keeper.restore(abstract_of(state())).step == 10
    keeper.save(20, {"a": jnp.ones(2)}, {"again": True}, {})
    assert keeper.steps() == [10, 20] and keeper.passed_over == []
    assert checkpoints.read_meta(copy / "00000020") == {"again": True}
    keeper.save(30, {"a": jnp.ones(2)}, {}, {})
    assert keeper.steps() == [20, 30]  # 20 is whole again, so it is 10 that goes
    assert keeper.latest_good() == copy / "00000030"


@pytest.mark.parametrize(
    "tree, meta, files, error, message",
    [
        ({"a": {"b": 3}}, {}, {}, TypeError, "a/b: is of type int"),
        ({"a": np.ones(2)}, {}, {}, TypeError, "a: is of type ndarray"),
        ({"a": jnp.ones((2, 0))}, {}, {}, ValueError, "a: has shape"),
        (jnp.ones(2), {}, {}, ValueError, "name of its own"),
        ({"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, {}, {}, ValueError, "'a.b'"),
        ({"a": jnp.ones(2)}, {"loss": float("nan")}, {}, ValueError, "JSON"),
        ({"a": jnp.ones(2)}, {}, {"meta.json": ""}, ValueError, "meta.json"),
        ({"a": jnp.ones(2)}, {}, {"../x": ""}, ValueError, "'../x'"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path, tree, meta, files, error, message):
    with pytest.raises(error, match=message):
        Checkpoints(tmp_path / "new").save(1, tree, meta, files)
    assert not (tmp_path / "new").exists()


def test_find_takes_a_workdir_its_checkpoints_or_one_step(copy):
    for path in (copy.parent, copy, copy / "00000020"):
        assert checkpoints.find(path) == copy / "00000020"
    assert checkpoints.find(copy / "00000010") == copy / "00000010"
    flip_bit(copy / "00000020" / "config.json", random.Random(0))
    assert checkpoints.find(copy.parent) == copy / "00000010"
    with pytest.raises(ConfigError, match="00000020: digest of config.json differs"):
        checkpoints.find(copy / "00000020")
    (copy / "00000010" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="no step in .* is whole .*20: digest of config.json.*10: no manifest"):
        checkpoints.find(copy)
    with pytest.raises(ConfigError, match="nowhere: there is no such directory"):
        checkpoints.find(copy / "nowhere")
    (copy.parent / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoints.find(copy.parent / "empty")
    with pytest.raises(ConfigError, match=f"it is a folder of runs, give one of them: {copy.parent.name}$"):
        checkpoints.find(copy.parent.parent)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="keep_checkpoints=0"):
        Checkpoints(tmp_path, keep=0)


def test_looking_up_a_checkpoint_imports_no_jax(saved):
    code = (
        "import sys; from mdlm_jax.training import checkpoints;"
        "assert checkpoints.find(sys.argv[1]).name == '00000020';"
        "sys.exit(any(name in sys.modules for name in ('jax', 'orbax', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(saved)], check=False).returncode == 0
