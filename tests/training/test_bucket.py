"""Checkpoints in a bucket: the same as in a folder, by a marker written last instead of a rename.

The bucket is ours (`tests.fake_bucket`); tensorstore speaks to it by its own client for Google's, over HTTP, and so
does gcsfs where it is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mdlm_jax.config import ConfigError
from mdlm_jax.training import checkpoints, keeping, manifest, places
from mdlm_jax.training.checkpoints import Checkpoints
from tests import fake_bucket
from tests.marks import slow_unless

ROOT = "gs://rows/run/checkpoints"
ours_alone = pytest.mark.skipif(fake_bucket.GCSFS, reason="gcsfs tries again for a minute")


@pytest.fixture
def bucket():
    with fake_bucket.emptied() as bucket:
        yield bucket


def state(step):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    table = jax.device_put(jnp.arange(48.0).reshape(16, 3) * step, NamedSharding(mesh, PartitionSpec("fsdp")))
    return {"params": {"table": table, "scale": jnp.full(3, step / 3, jnp.bfloat16)}, "key": jax.random.key(step)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def save(keeper, step, **more):
    return keeper.save(step, state(step), {"position": step, **more}, {"config.json": "{}"})


def assert_state(tree, step):
    for a, b in zip(jax.tree.leaves(tree["params"]), jax.tree.leaves(state(step)["params"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert a.sharding == b.sharding
    assert (jax.random.key_data(tree["key"]) == jax.random.key_data(state(step)["key"])).all()


def names(bucket):
    return {name.removeprefix("rows/run/checkpoints/").split("/")[0] for name in bucket.objects}


def test_saved_restored_and_found(bucket):
    with Checkpoints(ROOT, keep=2) as keeper:
        for step in (1, 2, 3):
            assert str(save(keeper, step)) == f"{ROOT}/0000000{step}"
            assert bucket.writes[-1].endswith("manifest.json") or bucket.writes[-1].startswith("-")
    assert names(bucket) == {"00000002", "00000003"}
    again = Checkpoints(ROOT)
    restored = again.restore(abstract())
    assert (restored.step, restored.meta, restored.passed_over) == (3, {"position": 3}, [])
    assert_state(restored.tree, 3)
    for path in ("gs://rows/run", ROOT, f"{ROOT}/00000003", f"{ROOT}/00000003/"):
        assert str(checkpoints.find(path)) == f"{ROOT}/00000003"
    assert checkpoints.read_file(f"{ROOT}/00000003", "config.json") == b"{}"
    scale = checkpoints.abstract(f"{ROOT}/00000003")["params"]["scale"]
    tree = checkpoints.restore_path(f"{ROOT}/00000002", {"params": {"scale": scale}}, partial=True).tree
    np.testing.assert_array_equal(np.asarray(tree["params"]["scale"]), np.asarray(state(2)["params"]["scale"]))
    with pytest.raises(ConfigError, match="gs://rows/nothing: there is no such directory"):
        checkpoints.find("gs://rows/nothing")


def test_the_manifest_is_the_last_to_come_and_the_first_to_go(bucket):
    keeper = Checkpoints(ROOT, keep=1)
    save(keeper, 1)
    first = [name for name in bucket.writes if "/00000001/" in name]
    assert first[-1].endswith("00000001/manifest.json")
    bucket.writes.clear()
    save(keeper, 2)
    gone = [name for name in bucket.writes if name.startswith("-") and "/00000001/" in name]
    assert gone[0] == "-rows/run/checkpoints/00000001/manifest.json"
    assert bucket.writes.index(gone[0]) > bucket.writes.index("rows/run/checkpoints/00000002/manifest.json")
    assert names(bucket) == {"00000002"}


@ours_alone
def test_cut_off_at_every_write_leaves_the_earlier_steps_and_no_half_one(bucket):
    """Each file that we write ourselves is the one at which the save of step 3 ends."""
    with Checkpoints(ROOT, keep=2) as keeper:
        save(keeper, 1)
        save(keeper, 2)
    ours = ("meta.json", "config.json", "manifest.json")
    for last in ours:
        bucket.fails = lambda name, last=last: name.endswith(f"00000003/{last}")
        with pytest.raises(ConnectionAbortedError, match=last):
            save(Checkpoints(ROOT, keep=2), 3)
        bucket.fails = lambda name: False
        again = Checkpoints(ROOT, keep=2)
        assert again.steps() == [1, 2] and again.latest_good().name == "00000002"
        assert again.passed_over == [] and "00000003" in names(bucket)
    save(again, 3)
    assert Checkpoints(ROOT).steps() == [2, 3] and names(bucket) == {"00000002", "00000003"}
    assert_state(Checkpoints(ROOT).restore(abstract()).tree, 3)


@ours_alone
def test_cut_off_in_the_first_save_starts_anew(bucket):
    bucket.fails = lambda name: name.endswith("manifest.json")
    with pytest.raises(ConnectionAbortedError):
        save(Checkpoints(ROOT), 1)
    bucket.fails = lambda name: False
    again = Checkpoints(ROOT)
    assert again.restore(abstract()) is None and again.passed_over == []
    save(again, 1)
    assert again.steps() == [1]


@pytest.mark.parametrize("how", slow_unless(["flip", "cut", "empty", "gone"], "flip", "gone"))
def test_a_damaged_step_is_passed_over_named_and_replaced(how, bucket):
    with Checkpoints(ROOT, keep=3) as keeper:
        for step in (1, 2):
            save(keeper, step)
    state_files = [name for name in bucket.under("rows/run/checkpoints/00000002/state/") if bucket.objects[name][0]]
    name = max(state_files, key=lambda name: len(bucket.objects[name][0]))
    data = bytearray(bucket.objects[name][0])
    data[len(data) // 2] ^= 8
    if how == "gone":
        bucket.objects.pop(name)
    else:
        bucket.put(name, {"flip": data, "cut": data[: len(data) // 2], "empty": b""}[how])
    again = Checkpoints(ROOT, keep=3)
    restored = again.restore(abstract())
    assert restored.step == 1
    ((step, reason),) = restored.passed_over
    assert step == 2 and name.split("00000002/")[1] in reason
    assert_state(restored.tree, 1)
    save(again, 2)
    assert_state(Checkpoints(ROOT).restore(abstract()).tree, 2)
    with pytest.raises(FileExistsError, match="is a whole checkpoint already"):
        save(again, 2)


def test_the_best_and_every_tenth_stay(bucket):
    keeper = Checkpoints(ROOT, keep=1, every=4, best=1)
    for step, bound in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)):
        keeper.save(step, state(step), keeping.measured(bound), {})
    assert keeper.steps() == [2, 4, 5] and str(keeper.best()) == f"{ROOT}/00000002"


def test_a_function_runs_before_a_step_is_whole(bucket):
    keeper, seen = Checkpoints(ROOT), []
    keeper.begin_save(1, state(1), {}, {}, before=lambda: seen.append(keeper.steps()))
    keeper.wait()
    assert seen == [[]] and keeper.steps() == [1]


def test_places(bucket, tmp_path):
    remote = places.place("gs://rows/some/where")
    assert places.in_bucket(remote) and not places.in_bucket(tmp_path) and str(remote) == "gs://rows/some/where"
    assert places.place(str(tmp_path) + "/../x") == tmp_path / ".." / "x"
    for root in (remote, tmp_path):
        for name in ("a.txt", "deep/er/b.bin"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            places.write_whole(root / name, name.encode())
        assert [path.relative_to(root).as_posix() for path in places.files(root)] == ["a.txt", "deep/er/b.bin"]
        assert [places.size(path) for path in places.files(root)] == [5, 13]
        manifest.write(root)
        assert manifest.verify(root) == []
        (root / "a.txt").write_bytes(b"A.txt")
        assert manifest.verify(root) == ["digest of a.txt differs from manifest.json"]
        (root / "a.txt").unlink()
        assert manifest.verify(root) == ["missing file a.txt"]


def test_without_a_reader_of_buckets_the_error_says_what_to_install(monkeypatch):
    import fsspec

    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match=r"gs://rows/x: reading buckets needs gcsfs; pip install 'mdlm_jax\[gcs\]'"):
        Checkpoints("gs://rows/x")
