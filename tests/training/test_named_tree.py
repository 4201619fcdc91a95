import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax.training import named_tree


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


TREE = {"b": [jnp.ones(2), Pair(jnp.zeros((), jnp.int8), jax.random.key(0))], "a": {}, "c": None, "d": (jnp.ones(3),)}


def test_names_are_the_way_from_the_root_in_leaf_order():
    leaves = named_tree.named_leaves(TREE)
    assert list(leaves) == [("b", "0"), ("b", "1", "left"), ("b", "1", "right"), ("d", "0")]
    assert all(a is b for a, b in zip(leaves.values(), jax.tree.leaves(TREE), strict=True))


def test_nest_puts_names_back_as_dicts():
    nested = named_tree.nest({("a", "0"): 1, ("a", "1", "x"): 2, ("b",): 3})
    assert nested == {"a": {"0": 1, "1": {"x": 2}}, "b": 3}
    assert named_tree.named_leaves(nested) == {("a", "0"): 1, ("a", "1", "x"): 2, ("b",): 3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int4", "bool", "uint32"])
def test_dtypes_survive_json(dtype):
    described = json.loads(json.dumps(named_tree.describe({("x",): jnp.zeros((2, 3), dtype)})))
    assert described == [{"path": ["x"], "shape": [2, 3], "dtype": dtype}]
    (back,) = named_tree.undescribe(described).values()
    assert back.dtype == jnp.dtype(dtype) and back.shape == (2, 3)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_key_dtypes_survive_json(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 2)
    described = json.loads(json.dumps(named_tree.describe({("x",): keys})))
    assert described == [{"path": ["x"], "shape": [2], "dtype": f"key<{impl}>"}]
    assert named_tree.undescribe(described)[("x",)].dtype == keys.dtype


def test_mismatches_name_every_difference_and_nothing_else():
    stored = {("a",): jax.ShapeDtypeStruct((2,), jnp.float32), ("b", "c"): jax.ShapeDtypeStruct((), jnp.int32)}
    assert named_tree.mismatches(stored, stored) == []
    assert named_tree.mismatches(stored, {("a",): stored["a",]}, partial=True) == []
    assert named_tree.mismatches(stored, {("a",): stored["a",]}) == ["b/c is in the checkpoint only"]
    wanted = {("a",): jax.ShapeDtypeStruct((2,), jnp.bfloat16), ("b", "c"): stored["b", "c"], ("d",): stored["a",]}
    assert named_tree.mismatches(stored, wanted) == [
        "d is not in the checkpoint",
        "a is float32[2] in the checkpoint and bfloat16[2] in this program",
    ]
