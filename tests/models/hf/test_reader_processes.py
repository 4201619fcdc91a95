"""Two processes of four devices each read the shards of their own devices, and compute together."""

import numpy as np
import pytest

import mdlm_jax
from tests.models.hf.support import GOLDEN
from tests.training.test_processes import job


@pytest.mark.slow
def test_each_process_reads_its_shards(tmp_path):
    done = job(2, 4, "-m", "tests.models.hf.reading_process", str(GOLDEN / "llada_ckpt"), str(tmp_path / "logits.npy"))
    assert done.returncode == 0, done.stderr[-2000:]
    expected = mdlm_jax.load(GOLDEN / "llada_ckpt").logits(np.arange(40).reshape(4, 10))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=2e-4)
