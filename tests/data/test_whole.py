"""A text taken whole: every token of every document, in order, in whole rows."""

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.data.whole import whole_text


def test_a_folder_is_read_whole_whatever_the_run_holds_out(tmp_path):
    for name, text in (("a.txt", "first"), ("b.txt", ""), ("c.txt", "second one")):
        (tmp_path / name).write_text(text)
    tokenizer = ByteTokenizer()
    config = DataConfig(length=4, valid_fraction=0.9, source="language:hmm")
    batch = whole_text(config, str(tmp_path), tokenizer)
    np.testing.assert_array_equal(batch["tokens"].reshape(-1), [*b"firstsecond"] + [ord(" ")])
    assert batch["loss_mask"].all()


def test_less_than_a_row_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(ConfigError, match="text .*holds 3 tokens, which is less than one row of 8"):
        whole_text(DataConfig(length=8), str(tmp_path / "a.txt"), ByteTokenizer())
