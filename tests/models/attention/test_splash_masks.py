"""The rules of the splash masks against the masks of `visibility`, and the pallas internals they lean on."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import MultiHeadMask

from mdlm_jax.models.attention import splash_masks
from tests.models.attention.contracts import visibility


@pytest.mark.parametrize("padding", (0, 40))
@pytest.mark.parametrize(("contract", "block_length", "queries", "keys"), (
    ("bidirectional", 1, 48, 48),
    ("causal", 1, 48, 48),
    ("causal", 1, 16, 48),
    ("block_causal", 7, 48, 48),
    ("block_causal", 16, 16, 48),
    ("two_stream", 1, 48, 48),
    ("two_stream", 5, 48, 48),
    ("two_stream", 24, 48, 48),
    ("two_stream", 100, 48, 48),
))
def test_rules_are_the_contracts(contract, block_length, queries, keys, padding):
    padded = (queries + padding, keys + padding)
    mask = splash_masks.make(contract, block_length, (queries, keys), padded)
    whole = mask[0 : padded[0], 0 : padded[1]]
    truth = visibility(contract, block_length, jnp.ones((1, keys), jnp.int32)).mask(1, keys, keys)
    if queries != keys:
        truth = visibility(contract, block_length).mask(1, queries, keys)
    np.testing.assert_array_equal(np.broadcast_to(whole[:queries, :keys], (queries, keys)),
                                  np.asarray(truth)[0, 0][:queries])
    assert whole.any(1).all(), "a padded query that sees nothing would divide by zero"
    assert (mask[8:24, 4:12] == whole[8:24, 4:12]).all()


def test_masks_are_equal_by_what_they_hide():
    """The kernel caches by equality; unequal masks must differ."""
    one = splash_masks.make("block_causal", 8, (64, 64), (128, 128))
    assert one == splash_masks.make("block_causal", 8, (64, 64), (128, 128))
    assert hash(one) == hash(splash_masks.make("block_causal", 8, (64, 64), (128, 128)))
    assert one != splash_masks.make("block_causal", 4, (64, 64), (128, 128))
    assert one != splash_masks.make("block_causal", 8, (64, 64), (128, 256))


def test_pallas_still_takes_rules():
    """What the shim leans on: a mask with ``q_sequence`` and ``mask_function`` is computed, never stored."""
    mask = splash_masks.make("two_stream", 32, (1024, 1024), (1024, 1024))
    for process in (info.process_mask, info.process_mask_dkv):
        found, function = process(MultiHeadMask([mask] * 2), (128, 128))
        assert function == mask.mask_function
        assert found.partial_mask_blocks is None and found.mask_next is None
        np.testing.assert_array_equal(found.q_sequence, mask.q_sequence)
