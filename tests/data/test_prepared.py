"""Reading prepared rows: every row once an epoch on any hosts, damage named, what does not fit refused."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.prefetch import prefetch
from mdlm_jax.data.prepared import Rows
from mdlm_jax.data.tokenizers import ByteTokenizer
from tests.data.prepared_support import LENGTH, make, paragraphs, write_sources

BATCH = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two folders of rows, ``one`` in four shards and ``two`` in one."""
    root = tmp_path_factory.mktemp("prepared")
    sources = write_sources(root)
    make(root / "one", sources[0], shards=4)
    make(root / "two", sources[1])
    return root


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root / "one", tmp_path / "rows")
    return tmp_path / "rows"


def opened(*folders, weights=(0.7, 0.3), batch_size=BATCH, **fields):
    source = f"prepared:{folders[0]}"
    if len(folders) > 1:
        source = "mixture:" + ",".join(f"{w}*{folder}" for w, folder in zip(weights, folders, strict=True))
    return build(DataConfig(**{"source": source, "length": LENGTH} | fields), batch_size)


def ids_by_content(built):
    """Which stored row a row of tokens is; all are different."""
    rows = built.train.sequential(0, built.train.num_rows)["tokens"]
    ids = {row.tobytes(): number for number, row in enumerate(rows)}
    assert len(ids) == built.train.num_rows
    return ids


@pytest.mark.parametrize("mixture", [False, True])
def test_every_row_once_an_epoch_though_the_hosts_change_at_every_restart(root, mixture):
    """Runs on 1, 2, 4, 2 and 1 hosts, each going on from the one integer of the last; rows known by what they hold."""
    folders = (root / "one", root / "two") if mixture else (root / "one",)
    first = opened(*folders)
    ids = ids_by_content(first)
    sizes = [folder["rows"] for folder in first.info["folders"]]
    steps = 3 * first.train.num_rows // BATCH
    stops = [steps // 7, steps // 5, steps // 2, steps // 2 + 3, steps]
    stream = []
    for hosts, start, stop in zip((1, 2, 4, 2, 1), [0, *stops], stops, strict=False):
        pipelines = [opened(*folders).train for _ in range(hosts)]  # a process of its own has its own reader
        share = BATCH // hosts
        for step in range(start, stop):
            for host, pipeline in enumerate(pipelines):
                rows = pipeline.batch(step, slice(host * share, (host + 1) * share))["tokens"]
                stream += [ids[row.tobytes()] for row in rows]
    assert len(stream) == steps * BATCH
    stream = np.array(stream)
    np.testing.assert_array_equal(stream, np.concatenate([first.train.row_index(s) for s in range(steps)]))
    start = 0
    for size in sizes:
        own = stream[(stream >= start) & (stream < start + size)] - start
        whole = own[: len(own) // size * size].reshape(-1, size)
        assert len(whole) >= 2
        np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(size), (len(whole), 1)))
        start += size
    if mixture:
        shares = [(stream < sizes[0]).mean(), (stream >= sizes[0]).mean()]
        assert np.abs(np.array(shares) * len(stream) - np.array([0.7, 0.3]) * len(stream)).max() <= 0.5 + 1e-6


def test_far_steps_and_threads(root):
    pipeline = opened(root / "one").train
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        steps = [0, 10**12, 3, 10**9] * 20
        batches = list(pool.map(lambda step: pipeline.batch(step)["tokens"], steps))
    again = opened(root / "one").train
    for step, tokens in zip(steps, batches, strict=True):
        np.testing.assert_array_equal(tokens, again.batch(step)["tokens"])
    with prefetch(pipeline, 7, threads=3, depth=4) as ahead:
        for step in range(7, 20):
            np.testing.assert_array_equal(next(ahead)[1]["tokens"], again.batch(step)["tokens"])


def test_a_slice_reads_its_rows_alone(root):
    rows = Rows(root / "one", manifests.read(root / "one"), "train")
    assert rows.shape == (len(rows), LENGTH) and rows[0:3].shape == (3, LENGTH)
    np.testing.assert_array_equal(rows[np.array([5, 2, 5])], np.stack([rows[5:6][0], rows[2:3][0], rows[5:6][0]]))


def test_fingerprints_tell_rows_and_mixtures_apart(root, copy):
    folders = [(root / "one",), (root / "two",), (root / "one", root / "two"), (root / "two", root / "one")]
    prints = [opened(*names).train.fingerprint for names in folders]
    prints.append(opened(root / "one", root / "two", weights=(0.6, 0.4)).train.fingerprint)
    assert len(set(prints)) == 5
    assert opened(copy).train.fingerprint == prints[0]
    assert opened(root / "one", root / "two", weights=(7, 3)).train.fingerprint == prints[2]


def test_the_account_of_a_mixture(root):
    built = opened(root / "one", root / "two")
    one, two = (manifests.read(root / name)["splits"] for name in ("one", "two"))
    assert built.info["train"]["rows"] == one["train"]["rows"] + two["train"]["rows"] == built.train.num_rows
    assert built.info["valid"]["tokens"] == one["valid"]["tokens"] + two["valid"]["tokens"]
    assert [folder["weight"] for folder in built.info["folders"]] == [0.7, 0.3]
    assert built.valid.num_rows == one["valid"]["rows"] + two["valid"]["rows"]
    assert len(built.valid.sequential(0, built.valid.num_rows)["tokens"]) == built.valid.num_rows


SHARD = "train-00002-of-00004.array_record"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])



@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, f"{SHARD}: has .* bytes instead of"),
        (lambda path: path.write_bytes(b""), f"{SHARD}: has 0 bytes instead of"),
        (lambda path: path.unlink(), f"{SHARD}: is missing"),
        (lambda path: path.with_name("extra.array_record").write_bytes(b"x"), "extra.array_record: does not belong"),
        (lambda path: path.with_name("tokenizer.json").write_text("{}"), "tokenizer.json: is missing or not"),
        (lambda path: path.with_name("manifest.json").unlink(), "it has no manifest.json"),
        (lambda path: truncate(path.with_name("manifest.json")), "manifest.json: is not JSON"),
    ],
)
def test_damage_is_named_before_a_row_is_read(copy, damage, said):
    damage(copy / SHARD)
    with pytest.raises(ConfigError, match=said):
        opened(copy)


def test_a_changed_manifest_is_not_believed(copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"documents": ', '"documents": 1', 1))
    with pytest.raises(ConfigError, match="manifest.json: is damaged"):
        opened(copy)
    (copy / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ConfigError, match="is no manifest of"):
        opened(copy)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_found_by_verify_and_never_read_as_a_row(copy, root, place):
    manifest = manifests.read(copy)
    assert manifests.verify(copy, manifest) == sum(shard["bytes"] for shard in manifests.shards(manifest))
    data = bytearray((copy / SHARD).read_bytes())
    data[int(place * len(data))] ^= 4
    (copy / SHARD).write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=f"damaged: {SHARD};"):
        manifests.verify(copy, manifest)
    expected = opened(root / "one").train
    expected = expected.sequential(0, expected.num_rows)["tokens"]
    try:
        found = opened(copy).train.sequential(0, len(expected))["tokens"]
    except ConfigError as error:
        assert SHARD in str(error)
    else:  # a bit that no row needs
        np.testing.assert_array_equal(found, expected)


def test_a_shard_with_another_number_of_rows_is_named(copy):
    """The same size and another content, as no size can tell: rows of another shard, padded or cut to the bytes."""
    manifest = manifests.read(copy)
    shard = next(s for s in manifest["splits"]["train"]["shards"] if s["name"] == SHARD)
    shard["rows"] += 1
    manifest["splits"]["train"]["rows"] += 1
    manifest.pop("digest"), manifest.pop("format")
    manifests.write(copy, manifests.seal(manifest), copy)
    with pytest.raises(ConfigError, match=f"{SHARD}: holds {shard['rows'] - 1} rows instead of {shard['rows']}"):
        opened(copy)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 16}, "data.length=16: the rows in .* have 32 tokens"),
        ({"tokenizer": "bpe:300"}, "data.tokenizer='bpe:300': the rows in .* were made with 'byte'"),
        ({"batch_size": 10**6}, "are too few for 1000000 training rows"),
    ],
)
def test_what_does_not_fit_is_refused(root, fields, said):
    with pytest.raises(ConfigError, match=said):
        opened(root / "one", **fields)


def test_the_tokenizer_of_a_checkpoint_must_be_that_of_the_rows(root, tmp_path):
    (tmp_path / "book.txt").write_text("".join(paragraphs(200, 5)))
    make(tmp_path / "rows", tmp_path / "book.txt", tokenizer="bpe:300")
    config = DataConfig(source=f"prepared:{tmp_path / 'rows'}", tokenizer="bpe:300", length=LENGTH)
    assert build(config, 4, build(config, 4).tokenizer).tokenizer.vocab_size <= 300
    with pytest.raises(ConfigError, match="another tokenizer than the checkpoint"):
        build(config, 4, ByteTokenizer())
    mixture = DataConfig(source=f"mixture:1*{root / 'one'},1*{tmp_path / 'rows'}", length=LENGTH)
    with pytest.raises(ConfigError, match="has another tokenizer than .*one; prepare it with --tokenizer="):
        build(mixture, 4)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("prepared:", "names no folder"),
        ("mixture:", "write mixture:WEIGHT"),
        ("mixture:0.5*a,b", "write mixture:WEIGHT"),
        ("mixture:0*a,1*b", "positive weights"),
        ("mixture:nan*a,1*b", "positive weights"),
        ("mixture:1*a,2*a", "names a folder twice"),
        ("prepared:/nowhere/at/all", "there is no such folder"),
        ("prepared:gs://bucket/rows", "only folders of this machine"),
    ],
)
def test_sources_that_cannot_be(source, said):
    with pytest.raises(ConfigError, match=said):
        build(DataConfig(source=source, length=LENGTH), 4)


def test_a_weight_that_is_too_small_is_refused_before_a_row_is_read(root):
    with pytest.raises(ConfigError, match="weight 1e-06 .* less than 1 part in 10000"):
        opened(root / "one", root / "two", weights=(1.0, 1e-6))


def test_fields_that_were_settled_before_are_refused(root):
    for fields, said in (({"valid_fraction": 0.1}, "data.valid_fraction=0.1: was settled"),
                         ({"text_field": "body"}, "data.text_field='body'"), ({"data_dir": "x"}, "data.data_dir='x'")):
        with pytest.raises(ConfigError, match=said):
            opened(root / "one", **fields)
