"""Lookup and reduction on a mesh equal those on one device, gradients included, and move no more than they must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import vocabulary
from mdlm_jax.models.sharding import BATCH_AXES, make_mesh
from mdlm_jax.planning import collectives, hlo
from tests.marks import slow_unless

ROWS, LENGTH, WIDTH, COLUMNS = 8, 12, 16, 24
MESHES = ({"fsdp": 8}, {"replica": 2, "fsdp": 4}, {"fsdp": 2, "context": 2, "tensor": 2}, {"expert": 2, "tensor": 4})


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def on_mesh(sizes, function, *arguments):
    """``function`` compiled with the mesh set; its rows split, weights as the tables of `sharding` say."""
    mesh = make_mesh(sizes)

    def place(x):
        rows = x.ndim > 1 and x.shape[0] == ROWS
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES) if rows else PartitionSpec()))

    def run(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jax.jit(run)(*jax.tree.map(place, arguments))


def agree(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=2e-5, rtol=2e-5), a, b)


@pytest.mark.parametrize("sizes", MESHES)
def test_lookup(sizes):
    ids = jnp.asarray(np.random.default_rng(0).integers(0, COLUMNS, (ROWS, LENGTH)), jnp.int32)
    weight = normal(1, ROWS, LENGTH, WIDTH)

    def looked_up(table, ids, weight):
        rows = vocabulary.lookup(table, ids, ("vocab", "embed"))
        return (rows * weight).sum(), rows

    run = jax.value_and_grad(looked_up, has_aux=True)
    arguments = normal(2, COLUMNS, WIDTH), ids, weight
    agree(on_mesh(sizes, run, *arguments), run(*arguments))


def reduction(arrays, values):
    """Everything that can be asked for, weighed at random."""
    hidden, kernel, bias, other_hidden, other_kernel, offset = arrays
    reduced = vocabulary.reduce(
        Prediction(hidden, Head(kernel, bias)), suppress=3, target=jnp.full(hidden.shape[:2], 5), offset=offset,
        current=jnp.full(hidden.shape[:2], 7), entropy=True, values=values, chunk=5,
        teacher=Prediction(other_hidden, Head(other_kernel)),
    )
    found = [x for x in reduced if x is not None]
    weights = (normal(n, ROWS, LENGTH) for n in range(len(found)))
    return sum((w * x).sum() for w, x in zip(weights, found, strict=True)), reduced


@pytest.mark.parametrize("sizes", slow_unless(MESHES, *MESHES[2:]))
def test_reduction(sizes):
    arrays = (normal(0, ROWS, LENGTH, WIDTH), normal(1, WIDTH, COLUMNS), normal(2, COLUMNS),
              normal(3, ROWS, LENGTH, WIDTH), normal(4, WIDTH, COLUMNS), normal(5, ROWS, LENGTH))
    run = jax.value_and_grad(reduction, argnums=(0, 1), has_aux=True)
    agree(on_mesh(sizes, run, arrays, normal(6, COLUMNS)), run(arrays, normal(6, COLUMNS)))


def test_ready_made_logits():
    logits = normal(0, ROWS, LENGTH, COLUMNS)

    def run(logits):
        return vocabulary.reduce(Prediction.from_logits(logits), suppress=None, entropy=True)

    agree(on_mesh({"fsdp": 8}, run, logits), run(logits))


def test_a_head_travels_once_whatever_the_chunks():
    """Gathered once, its gradient scattered once: the bytes do not depend on the number of chunks."""
    mesh = make_mesh({"fsdp": 8})
    kernel = jax.ShapeDtypeStruct((WIDTH, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    hidden = jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), jnp.float32, sharding=rows)

    def travels(chunk):
        def loss(kernel, hidden):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                target = jnp.zeros(hidden.shape[:2], jnp.int32)
                reduced = vocabulary.reduce(Prediction(hidden, Head(kernel)), suppress=None, target=target, chunk=chunk)
            return reduced.target.sum()

        compiled = jax.jit(jax.grad(loss), out_shardings=kernel.sharding).lower(kernel, hidden).compile()
        return collectives.totals(collectives.find(hlo.parse(compiled.as_text())))

    found = travels(LENGTH)
    assert found == travels(3)
    assert {kind: total["bytes"] for kind, total in found.items() if kind != "all-reduce"} == {
        "all-gather": 4 * WIDTH * COLUMNS, "reduce-scatter": 4 * WIDTH * COLUMNS}
    assert found.get("all-reduce", {"bytes": 0})["bytes"] <= 8
