"""The vocabulary reduction against the plain log-softmax form: every output, every gradient, every way to call it."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import Reduced, chunk_length, reduce


def inputs(seed=0, rows=2, length=5, width=4, columns=7, dtype=jnp.float32, kernel=True, bias=True, spread=1.0):
    """What `outputs` differentiates, and what it does not."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    width = width if kernel else columns
    model = {"hidden": spread * normal(rows, length, width), "offset": 2 * normal(rows, length)}
    model["values"] = normal(columns)
    teacher = {"hidden": normal(rows, length, width)}
    for part in (model, teacher):
        part["kernel"] = normal(width, columns) if kernel else None
        part["bias"] = normal(columns) if bias else None
    ids = jnp.asarray(rng.integers(0, columns, (2, rows, length)), jnp.int32)
    return model, teacher, ids


def outputs(model, teacher, ids, *, suppress=None, chunk=None, reverse_kl=False):
    """Everything `reduce` can give."""
    return reduce(
        Prediction(model["hidden"], Head(model["kernel"], model["bias"])),
        suppress=suppress,
        target=ids[0],
        current=ids[1],
        offset=model["offset"],
        entropy=True,
        values=model["values"],
        teacher=Prediction(teacher["hidden"], Head(teacher["kernel"], teacher["bias"])),
        reverse_kl=reverse_kl,
        chunk=chunk,
    )


def plain(model, teacher, ids, *, suppress=None, reverse_kl=False):
    """The same from [B, L, V] log-probabilities. A suppressed id is dropped from sums, -inf where asked for."""

    def log_softmax(part):
        logits = part["hidden"] if part["kernel"] is None else part["hidden"] @ part["kernel"]
        logits = logits if part["bias"] is None else logits + part["bias"]
        possible = jnp.arange(logits.shape[-1]) != suppress
        normaliser = jax.nn.logsumexp(logits, axis=-1, where=possible)
        return jnp.where(possible, logits - normaliser[..., None], 0.0), possible, normaliser

    def at(index):
        inside = (index < log_probs.shape[-1]) & (index != suppress)
        found = jnp.take_along_axis(log_probs, jnp.where(inside, index, 0)[..., None], -1)[..., 0]
        return jnp.where(inside, found, -jnp.inf)

    log_probs, possible, normaliser = log_softmax(model)
    log_teacher = log_softmax(teacher)[0]
    probs = jnp.where(possible, jnp.exp(log_probs), 0.0)
    taught = jnp.where(possible, jnp.exp(log_teacher), 0.0)
    gap = log_probs - log_teacher
    return Reduced(
        normaliser,
        at(ids[0]),
        at(ids[1]),
        jnp.where(possible, jax.nn.softplus(log_probs + model["offset"][..., None]), 0.0).sum(-1),
        -(probs * log_probs).sum(-1),
        (probs * gap).sum(-1) if reverse_kl else -(taught * gap).sum(-1),
        (probs * model["values"]).sum(-1),
    )


def asked(ours, truth):
    """(name, ours, truth) of each field that was asked for."""
    return [fields for fields in zip(Reduced._fields, ours, truth, strict=True) if fields[2] is not None]


def weighted(reduced):
    """A scalar that mixes all outputs with random weights, leaving out what cannot be differentiated (-inf)."""
    weights = np.random.default_rng(9).normal(size=(len(reduced), *reduced.log_normaliser.shape))
    finite = [None if x is None else jnp.where(jnp.isfinite(x), x, 0.0) for x in reduced]
    return sum((x * jnp.asarray(w, x.dtype)).sum() for x, w in zip(finite, weights, strict=True) if x is not None)


def with_gradient(function, model, teacher, ids, **options):
    """(outputs, gradients with respect to ``model``)."""

    def loss(model):
        reduced = function(model, teacher, ids, **options)
        return weighted(reduced), reduced

    slope, reduced = jax.grad(loss, has_aux=True)(model)
    return reduced, slope


def compare(arguments, tolerance, **options):
    """Values and gradients of `outputs` and `plain`, compiled."""
    simple = {name: value for name, value in options.items() if name != "chunk"}
    ours, slope = jax.jit(lambda *a: with_gradient(outputs, *a, **options))(*arguments)
    truth, true_slope = jax.jit(lambda *a: with_gradient(plain, *a, **simple))(*arguments)
    for name, x, y in asked(ours, truth):
        assert x.dtype == jnp.promote_types(arguments[0]["hidden"].dtype, jnp.float32), name
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=name)
    for name, x in slope.items():
        if x is not None:
            np.testing.assert_allclose(x, true_slope[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "chunk, suppress, reverse_kl",  # 2 does not divide the length, 5
    [(None, None, False), (None, 3, True), (1, 0, False), (2, 6, True), (100, None, False)],
)
def test_values_and_gradients(chunk, suppress, reverse_kl):
    compare(inputs(), 1e-5, suppress=suppress, reverse_kl=reverse_kl, chunk=chunk)


@pytest.mark.parametrize("reverse_kl", [False, True])
def test_values_and_gradients_in_float64(reverse_kl):
    with jax.enable_x64(True):
        compare(inputs(dtype=jnp.float64), 1e-10, suppress=3, reverse_kl=reverse_kl, chunk=2)


@pytest.mark.parametrize("kernel, bias", [(True, False), (False, True)])
def test_heads(kernel, bias):
    compare(inputs(kernel=kernel, bias=bias), 1e-5, suppress=2, chunk=2)


def test_ids_without_a_column():
    """SMDM: ids reach V where the head has V columns. Like the suppressed id they are -inf and take no gradient."""
    model, teacher, ids = inputs()
    ids = ids.at[:, 0, :3].set(7).at[0, 1, 0].set(3)
    compare((model, teacher, ids), 1e-5, suppress=7, chunk=2)

    def target(hidden):
        return reduce(Prediction(hidden, Head(model["kernel"])), suppress=3, target=ids[0]).target

    assert np.isneginf(target(model["hidden"])[0, :3]).all() and np.isneginf(target(model["hidden"])[1, 0])
    slope = np.asarray(jax.grad(lambda hidden: target(hidden).sum())(model["hidden"]))
    assert (slope[0, :3] == 0).all() and (slope[1, 0] == 0).all() and (slope[0, 3:] != 0).all()


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)  # the compile cache knows the shapes
@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(2, 9), st.integers(1, 7), st.booleans()
)
def test_any_shape(rows, length, width, columns, chunk, suppress):
    arguments = inputs(rows + 10 * length, rows, length, width, columns)
    compare(arguments, 1e-5, suppress=columns - 1 if suppress else None, chunk=chunk)


def test_extreme_logits():
    """Logits of +-1e4, also from the bias, which positions that fill up the last chunk meet without a normaliser."""
    model, teacher, ids = inputs(spread=3e3)
    model["bias"] = jnp.asarray([1e4, -1e4, 0.0, 300.0, 0.0, 90.0, 0.0])
    reduced, slope = jax.jit(lambda *a: with_gradient(outputs, *a, suppress=3, chunk=2))(model, teacher, ids)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((reduced.log_normaliser, reduced.kl, slope)))


def test_bfloat16_hidden_states():
    """Logits are accumulated and reduced in float32: within bfloat16's rounding of the inputs, 2^-8 of the logits."""
    model, teacher, ids = inputs(columns=40, width=16)
    narrow = model | {"hidden": model["hidden"].astype(jnp.bfloat16)}
    exact = model | {"hidden": narrow["hidden"].astype(jnp.float32), "kernel": model["kernel"].astype(jnp.bfloat16)}
    exact["kernel"] = exact["kernel"].astype(jnp.float32)
    run = jax.jit(lambda *a: with_gradient(outputs, *a, suppress=3, chunk=2))
    (ours, slope), (truth, true_slope) = run(narrow, teacher, ids), run(exact, teacher, ids)
    for name, x, y in asked(ours, truth):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, x in slope.items():
        assert x.dtype == narrow[name].dtype
        x, y = np.asarray(x, np.float32), np.asarray(true_slope[name], np.float32)
        assert np.linalg.norm(x - y) <= 2e-2 * np.linalg.norm(y), name


def test_what_is_not_asked_for_is_none():
    model, _, ids = inputs()
    prediction = Prediction(model["hidden"], Head(model["kernel"]))
    only = reduce(prediction, suppress=None, target=ids[0])
    assert [name for name in Reduced._fields if getattr(only, name) is not None] == ["log_normaliser", "target"]
    with pytest.raises(ValueError, match="chunk=0"):
        reduce(prediction, suppress=None, chunk=0)


@pytest.mark.parametrize("offset", [-120.0, -30.0, 0.0, 50.0, 79.0, 95.0, 130.0])
def test_offsets_of_any_size(offset):
    """log(1 + e^s) and its slope where e^s overflows, and where it vanishes."""
    model, teacher, ids = inputs(spread=16.0)
    compare((model | {"offset": model["offset"] + offset}, teacher, ids), 2e-4)


def test_the_teacher_takes_no_gradient():
    model, teacher, ids = inputs()
    slope = jax.grad(lambda teacher: outputs(model, teacher, ids).kl.sum())(teacher)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize("rows, columns, budget, expected", [(4, 100, 4000, 10), (4, 100, 399, 1), (3, 7, 64, 3)])
def test_chunk_length(rows, columns, budget, expected):
    assert chunk_length(rows, columns, budget) == expected


def test_sharded_over_rows_and_vocabulary():
    """Eight devices, rows over four and columns over two: the values and gradients of one device."""
    mesh = jax.make_mesh((4, 2), ("data", "vocab"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, teacher, ids = inputs(rows=8, columns=12)

    def spec(*axes):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    head = {"kernel": spec(None, "vocab"), "bias": spec("vocab")}
    shardings = (
        {"hidden": spec("data"), "offset": spec("data"), "values": spec("vocab")} | head,
        {"hidden": spec("data")} | head,
        spec(None, "data"),
    )
    arguments = (model, teacher, ids)

    def both(*arguments):
        return with_gradient(outputs, *arguments, suppress=3, chunk=2)

    split = jax.jit(both, in_shardings=shardings)(*jax.device_put(arguments, shardings))
    assert len(split[0].target.sharding.device_set) == 8
    for x, y in zip(jax.tree.leaves(split), jax.tree.leaves(jax.jit(both)(*arguments)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


