"""One training step of every family of networks, compiled by the real XLA:TPU for v5e:4x4; full width, two layers.

Needs libtpu and a minute or two for each family.
"""

import pytest

from mdlm_jax.models import presets
from tests.planning import plans

pytestmark = [pytest.mark.slow, pytest.mark.tpu_aot, plans.needs_libtpu]

RECIPE = """
from mdlm_jax.config import default_config
from mdlm_jax.models import presets

def get_config():
    config = default_config()
    config.model.update(presets.fields({preset!r}))
    config.model.update(dict(layers=2, dtype="bfloat16", remat="full", backend="splash") | {model!r})
    config.data.length = 1024
    config.train.update(dict(batch_size=32, ema_decay=0.0) | {train!r})
    return config
"""
BLOCK = {"objective": "block", "router_bias_rate": 1e-3}
FAMILIES = {  # preset, changes of the model and of the training, mesh
    "bidirectional": ("llada-8b", {}, {}, {"replica": 4, "fsdp": 4}),
    "grouped_shifted": ("dream-7b", {}, {}, {"replica": 4, "fsdp": 4}),
    "time_conditioned": ("mdlm-small", {"conditioning": "time"}, {}, {"replica": 4, "fsdp": 4}),
    "experts_two_streams": ("llada2-mini", {}, BLOCK, {"fsdp": 4, "expert": 4}),
    "causal": ("gpt2", {}, {"objective": "autoregressive"}, {"replica": 4, "fsdp": 4}),
}


def tables(preset: str) -> int:
    """Bytes of the embedding and the head in bf16, be they one or two."""
    network = presets.fields(preset)
    return 4 * network["vocab_size"] * network["d_model"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family(family, tmp_path):
    """It fits; the gradients of layers are reduce-scattered (those of tables the compiler may sum whole); no weight is
    gathered oftener than twice; a device sends no more than the least (but for a tied table, whose two gradients are
    summed one by one); no product is computed oftener than remat asks for; attention and experts run in their kernels;
    no loop of unknown length sends anything but its condition."""
    preset, model, train, mesh = FAMILIES[family]
    recipe = RECIPE.format(preset=preset, model=model, train=train)
    asked = ",".join(f"{axis}:{size}" for axis, size in mesh.items())
    done, found = plans.plan(tmp_path, recipe, "--topology=v5e:4x4", f"--config.train.mesh={asked}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["fits"] and found["mesh"] == mesh
    assert all(note.startswith("all-reduce of 4 bytes") for note in found["notes"])
    assert found["memory"]["peak"] < 16 * 2**30
    totals, least = found["traffic"]["totals"], found["traffic"]["minimum"]
    scattered, whole = (totals[kind]["bytes"] for kind in ("reduce-scatter", "all-reduce"))
    assert 0.95 * (least["reduce-scatter"] - tables(preset)) <= scattered <= 1.1 * least["reduce-scatter"]
    assert totals["all-gather"]["bytes"] <= 1.1 * least["all-gather"]
    tied = tables(preset) if presets.fields(preset).get("tied") else 0.0
    share = tied / 2 / mesh["fsdp"]  # of one gradient more over the replicas
    assert whole <= 1.1 * least.get("all-reduce", 0.0) + tables(preset) + share
    assert found["traffic"]["wire"] <= 1.05 * found["traffic"]["minimum_wire"] + 1.5 * tied
    assert 0.7 <= found["flops"]["ratio"] <= 0.9
    assert found["flops"]["kernels"] > 0
