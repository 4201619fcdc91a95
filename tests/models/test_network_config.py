"""Networks that cannot be, or would not be what their configuration says, are refused when they are described."""

import jax
import pytest

from mdlm_jax.config.model import ModelConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import MoEConfig, TransformerConfig

SHAPE = dict(vocab_size=40, head_size=40, layers=2, d_model=32, heads=4, kv_heads=4, d_ff=48)
EXPERTS = dict(experts=8, per_token=2, d_ff=12)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 34}, "d_model=34: must be a multiple of heads=4; or set head_dim"),
        ({"head_dim": -8}, "head_dim=-8: must not be negative"),
        ({"learned_positions": -1}, "learned_positions=-1: must not be negative"),
        ({"conditioning": "time", "condition_dim": -4}, "condition_dim=-4: must not be negative"),
        ({"dtype": "float64"}, "dtype='float64': .*jax_enable_x64"),
    ],
)
def test_networks_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SHAPE | fields)


def test_what_makes_them_possible():
    assert TransformerConfig(**SHAPE | {"d_model": 34, "head_dim": 8}).head_dim == 8
    assert TransformerConfig(**SHAPE).head_dim == 8
    with jax.enable_x64(True):
        assert TransformerConfig(**SHAPE, dtype="float64").dtype == "float64"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bias_in_weight": True}, "moe.bias_in_weight=True: .*moe.selection_bias"),
        ({"block": 4, "block_pool": 4, "groups": 2, "top_groups": 2}, "moe.groups=2: .*moe.block=4"),
    ],
)
def test_routers_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**EXPERTS | fields)
    flat = {f"moe_{name}": value for name, value in (EXPERTS | fields).items()}
    with pytest.raises(ConfigError, match="model." + message.replace("moe.", "moe_")):
        ModelConfig(**flat)


def test_routers_that_can():
    MoEConfig(**EXPERTS, bias_in_weight=True, selection_bias=True)
    MoEConfig(**EXPERTS, block=4, block_pool=4)
    MoEConfig(**EXPERTS, groups=2, top_groups=2)
