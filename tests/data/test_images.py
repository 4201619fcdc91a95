"""Images as rows of codes with classes: data/images.py."""

import sys

import numpy as np
import pytest

from launch._data import check_data
from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import images, pipeline
from mdlm_jax.data.tokenizers import CodeTokenizer, LanguageTokenizer, load_tokenizer

sklearn = pytest.importorskip("sklearn.datasets")
DIGITS = DataConfig(source="digits", length=64, valid_fraction=0.2)


def saved(folder, rows=20, length=6, codes=9, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {"tokens": rng.integers(0, codes, (rows, length)), "labels": rng.integers(0, 4, rows)}
    np.savez(folder / f"{seed}.npz", **arrays)
    return arrays


def test_digits_are_those_of_scikit_learn():
    built, real = pipeline.build(DIGITS, 16), sklearn.load_digits()
    found = {split: [getattr(built, split).sequential(i, 1) for i in range(getattr(built, split).num_rows)]
             for split in ("train", "valid")}
    assert (len(found["train"]), len(found["valid"])) == (1438, 359)
    pairs = {(row["tokens"].tobytes(), int(row["label"][0])) for rows in found.values() for row in rows}
    assert pairs == {(image.astype(np.int32).tobytes(), int(label))
                     for image, label in zip(real.data, real.target, strict=True)}
    assert built.tokenizer.vocab_size == 18 and built.tokenizer.mask_id == 17
    assert built.info["train"]["classes"] == 10


def test_batches_say_the_class_and_everything_counts():
    built = pipeline.build(DIGITS, 8)
    batch = built.train.batch(3)
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (8,)
    index = built.train.row_index(3)
    for place, row in enumerate(index):
        alone = built.train.sequential(int(row), 1)
        assert alone["label"][0] == batch["label"][place]
        np.testing.assert_array_equal(alone["tokens"][0], batch["tokens"][place])
    assert all(batch[name].all() for name in ("noise_mask", "loss_mask", "attention_mask"))
    parts = [built.train.batch(3, slice(begin, begin + 4)) for begin in (0, 4)]
    np.testing.assert_array_equal(np.concatenate([part["label"] for part in parts]), batch["label"])


def test_what_is_held_out_does_not_depend_on_the_run_and_grows_with_the_fraction():
    small, large = images.held_out(1797, 0.05), images.held_out(1797, 0.2)
    assert small.sum() == 90 and large.sum() == 359 and (large | ~small).all()
    assert images.held_out(2, 0.01).sum() == images.held_out(2, 0.99).sum() == 1
    same = pipeline.build(DIGITS, 8).valid.fingerprint
    assert pipeline.build(DataConfig(**vars(DIGITS) | {"seed": 5}), 8).train.fingerprint != same
    np.testing.assert_array_equal(pipeline.build(DataConfig(**vars(DIGITS) | {"seed": 5}), 8).valid.sequential(0, 9)
                                  ["tokens"], pipeline.build(DIGITS, 8).valid.sequential(0, 9)["tokens"])


def test_labels_are_part_of_the_fingerprint(tmp_path):
    arrays = saved(tmp_path)
    config = DataConfig(source=f"codes:{tmp_path}", length=6)
    before = pipeline.build(config, 4).train.fingerprint
    np.savez(tmp_path / "0.npz", tokens=arrays["tokens"], labels=(arrays["labels"] + 1) % 4)
    assert pipeline.build(config, 4).train.fingerprint != before


def test_codes_come_from_a_file_a_folder_of_files_and_two_arrays(tmp_path):
    first, second = saved(tmp_path), saved(tmp_path, seed=1)
    both = images.open_images(DataConfig(source=f"codes:{tmp_path}", length=6, codes=16))
    np.testing.assert_array_equal(both.tokens, np.concatenate([first["tokens"], second["tokens"]]))
    np.testing.assert_array_equal(both.labels, np.concatenate([first["labels"], second["labels"]]))
    assert both.codes == 16 and both.classes == 4
    one = images.open_images(DataConfig(source=f"codes:{tmp_path / '0.npz'}", length=6))
    assert one.codes == first["tokens"].max() + 1
    apart = tmp_path / "arrays"
    apart.mkdir()
    for name, array in first.items():
        np.save(apart / f"{name}.npy", array)
    np.testing.assert_array_equal(images.open_images(DataConfig(source=f"codes:{apart}", length=6)).tokens, one.tokens)


@pytest.mark.parametrize(("change", "message"), [
    ({"tokens": np.zeros((3, 5), int), "labels": np.zeros(3, int)}, r"data.length=6.* rows of 5"),
    ({"tokens": np.zeros((3, 6)), "labels": np.zeros(3, int)}, r"tokens are float64\[3, 6\]"),
    ({"tokens": np.zeros((3, 6), int), "labels": np.zeros(2, int)}, "3 rows of tokens and 2 labels"),
    ({"tokens": np.full((3, 6), -1), "labels": np.zeros(3, int)}, "tokens hold -1"),
    ({"tokens": np.full((3, 6), 9), "labels": np.zeros(3, int)}, r"data.codes=8: .* the code 9"),
    ({"tokens": np.zeros((3, 6), int)}, "has no array 'labels'"),
    (None, "must be an .npz file, or a folder"),
    (b"PK nothing", "cannot be read"),
], ids=["length", "dtype", "count", "negative", "codes", "array", "nothing", "damaged"])
def test_unusable_files_are_refused_before_jax(change, message, tmp_path):
    file = tmp_path / "codes.npz"
    if isinstance(change, bytes):
        file.write_bytes(change)
    elif change is not None:
        np.savez(file, **change)
    with pytest.raises(ConfigError, match=message):
        check_data(DataConfig(source=f"codes:{file}", length=6, codes=8), 2)


@pytest.mark.parametrize(("fields", "message"), [
    ({"length": 256}, "set it to 64"),
    ({"length": 64, "tokenizer": "bpe:512"}, "data.tokenizer='bpe:512': has no meaning for images"),
    ({"length": 64, "packing": "documents"}, "data.packing"),
    ({"length": 64, "random_length": 0.1}, "data.random_length"),
    ({"length": 64, "length_warmup": "1:5"}, "data.length_warmup"),
    ({"length": 64, "codes": 17}, "is read only with data.source=codes:PATH"),
], ids=["length", "tokenizer", "packing", "random_length", "length_warmup", "codes"])
def test_fields_that_digits_would_not_read_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(source="digits", **fields)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'mdlm_jax\[images\]'"):
        check_data(DIGITS, 8)


def test_too_few_images_and_other_codes(tmp_path):
    saved(tmp_path)
    config = DataConfig(source=f"codes:{tmp_path}", length=6)
    with pytest.raises(ConfigError, match="19 training images are fewer than train.batch_size=32"):
        pipeline.build(config, 32)
    with pytest.raises(ConfigError, match="has 9 codes, but the tokenizer given is a LanguageTokenizer"):
        pipeline.build(config, 4, LanguageTokenizer(9))
    assert pipeline.build(config, 4, CodeTokenizer(9)).tokenizer.vocab_size == 10


def test_classes_are_compared_with_the_network(tmp_path):
    with pytest.raises(ConfigError, match="model.classes=9: the images of digits have 10 classes"):
        check_data(DIGITS, 8, classes=9)
    check_data(DIGITS, 8, classes=10)
    check_data(DIGITS, 8)
    saved(tmp_path)
    with pytest.raises(ConfigError, match="have 4 classes"):
        check_data(DataConfig(source=f"codes:{tmp_path}", length=6), 2, classes=3)


def test_the_tokenizer_of_codes(tmp_path):
    made = CodeTokenizer(17)
    made.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.same_as(made) and not again.same_as(LanguageTokenizer(17))
    assert (again.eos_id, again.pad_id, again.decode([3, 17, 16], show_special=True)) == (None, None, "3 <|mask|> 16")
    assert again.encode("3 16").tolist() == [3, 16]
    with pytest.raises(ValueError, match="must lie in 0..16"):
        again.encode("17")
