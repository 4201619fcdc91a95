"""Steps compiled by the real XLA:TPU: what travels, what is computed, what does not fit. Needs libtpu and minutes."""

import functools

import pytest

from tests.planning import plans

pytestmark = [pytest.mark.tpu_aot, plans.needs_libtpu]

RECIPE = """
from mdlm_jax.config import default_config

def get_config():
    config = default_config()
    config.model.update(layers=2, d_model=1024, heads=8, d_ff=2048, vocab_size=16384, dtype="bfloat16", remat="full",
                        backend="splash")
    config.data.length = 1024
    config.train.batch_size = 32
    config.train.head_budget = 1 << 24
    config.train.ema_decay = 0.0
    return config
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return functools.partial(plans.plan, tmp_path_factory.mktemp("plan"), RECIPE)


@pytest.fixture(scope="module")
def small(plan):
    done, found = plan("--topology=v5e:4x4")
    assert done.returncode == 0, done.stderr
    return found


def test_gradients_are_scattered_and_never_summed_whole(small):
    totals, least = small["traffic"]["totals"], small["traffic"]["minimum"]
    assert totals["all-reduce"]["bytes"] < 1.1 * least["all-reduce"]
    assert totals["reduce-scatter"]["bytes"] < 1.1 * least["reduce-scatter"]
    assert totals["all-gather"]["bytes"] < 1.1 * least["all-gather"]
    moved = totals.pop("collective-permute", {"wire": 0.0})
    assert moved["wire"] < 0.02 * small["traffic"]["wire"]
    assert set(totals) == {"all-gather", "reduce-scatter", "all-reduce"}


def test_nothing_but_remat_is_computed_twice(small):
    """The formula over what is compiled: three quarters where the forward pass is repeated."""
    assert 0.75 <= small["flops"]["ratio"] <= 0.85
    assert small["flops"]["kernels"] > 0


def test_memory_is_told_by_kind(small):
    memory = small["memory"]
    assert memory["arguments"] == pytest.approx(12 * small["parameters"] / 4, rel=0.02)  # fsdp 4
    assert memory["peak"] >= memory["arguments"]


def test_what_does_not_fit_is_said_so(plan):
    done, found = plan("--topology=v5e:1x1", "--config.model.layers=48", "--config.model.d_model=4096",
                       "--config.model.d_ff=16384", "--config.train.batch_size=2")
    assert done.returncode == 1 and "does not fit" in done.stdout and "Traceback" not in done.stderr
    assert found["needed"] > found["available"] > 15 * 2**30
