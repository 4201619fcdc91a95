"""The tree by formula against the tree of the network."""

import dataclasses

import jax
import pytest

from mdlm_jax.models import api
from mdlm_jax.models.shapes import active_parameter_count, layer_parameter_count, parameter_count, shapes

from .hf.support import DESCRIPTIONS, flat


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_shapes_are_those_of_the_network(name):
    config = DESCRIPTIONS[name].config
    assert shapes(config) == {path: leaf.shape for path, leaf in flat(api.abstract(config)).items()}
    assert parameter_count(config) == api.num_parameters(config)


def test_conditioned_on_time():
    config = dataclasses.replace(DESCRIPTIONS["mdlm"].config, conditioning="time")
    assert shapes(config) == {path: leaf.shape for path, leaf in flat(api.abstract(config)).items()}


def test_active_parameters_leave_idle_experts_out():
    config = DESCRIPTIONS["llada2"].config
    idle = (config.layers - 1) * (6 - 2) * 3 * 32 * 12
    assert parameter_count(config) - active_parameter_count(config) == idle
    dense = DESCRIPTIONS["llada"].config
    assert active_parameter_count(dense) == parameter_count(dense)


def test_layer_parameters_leave_tables_out():
    config = DESCRIPTIONS["smdm"].config
    assert parameter_count(config) - layer_parameter_count(config) == 41 * 32 + 40 * 32
    assert jax.tree.leaves(shapes(config))
