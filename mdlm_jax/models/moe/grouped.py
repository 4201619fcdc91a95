"""Products with one matrix per expert, at the cost of the visits: no expert sees a token that did not choose it.

Visits (token, expert) are sorted by expert, so each expert's rows are contiguous; ``sizes`` [X] counts them. The three
products of a layer and their transposes are `grouped_matmul`:

    product   y[r] = x[r] w[e(r)]             also with w transposed, for the gradient of x
    outer     dw[e] = sum over r in e of x[r]^T y[r]

Two backends. ``megablox``: the Pallas kernels of jax, on TPU. ``loop``: a while loop over blocks of rows of one expert,
as many as there are at run time; anywhere else.

`jax.lax.ragged_dot` is not used. By the FLOPs XLA reports, it is every expert on every row on CPU (X times the work,
forward and backward, jax 0.10.2 and 0.12.0.1), and on TPU its weight gradient is (X = 64, v5p, libtpu 0.0.42.1: the
backward pass costs 65 times the forward). Against one batched product with gathered weights, the loop takes 1/2 to 1/9
of the time and 1/2 to 1/5 of the memory on a CPU.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

BACKENDS = ("auto", "loop", "megablox", "interpret")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Visits sorted by expert.

    Attributes:
      order: [T k] int32, which visit (token * k + choice) stands in each row; visits to absent experts come last.
      place: [T k] int32, the row of each visit: the inverse of ``order``.
      sizes: [X] int32, rows of each expert.
    """

    order: jax.Array
    place: jax.Array
    sizes: jax.Array


def plan_visits(index: jax.Array, experts: int) -> Plan:
    """index [T, k]; an index outside [0, experts) is absent."""
    flat = index.reshape(-1)
    key = jnp.where((flat >= 0) & (flat < experts), flat, experts)
    order = jnp.argsort(key)
    return Plan(order, jnp.argsort(order), (key[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32))


def grouped_swiglu(
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    backend: str = "auto",
) -> jax.Array:
    """sum over choices j of weight_j * (silu(x gate_e) * (x up_e)) down_e with e = index_j.

    The weight enters before ``down``, so that the backward pass need not keep that product's rows.

    Args:
      x: [T, D]; index: [T, k] int32, outside [0, X): skipped; weight: [T, k].
      gate, up: [X, D, F]; down: [X, F, D], in the dtype of x.
    Returns:
      [T, D] in the dtype of x, summed over choices in float32 or wider.
    """
    plan = plan_visits(index, gate.shape[0])
    rows = _spread(x, plan.order, plan.place, index.shape[1])
    matmul = functools.partial(grouped_matmul, sizes=plan.sizes, backend=backend)
    hidden = jax.nn.silu(matmul(rows, gate)) * matmul(rows, up)
    hidden = hidden * _reorder(weight.reshape(-1), plan.order, plan.place)[:, None].astype(x.dtype)
    visits = _reorder(matmul(hidden, down), plan.place, plan.order).reshape(*index.shape, -1)
    return visits.sum(1, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def _reorder(x: jax.Array, order: jax.Array, place: jax.Array) -> jax.Array:
    """x[order] for a permutation; the gradient is a gather too, not a scatter."""
    return x[order]


_reorder.defvjp(lambda x, order, place: (x[order], place), lambda place, grad: (grad[place], None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spread(x: jax.Array, order: jax.Array, place: jax.Array, k: int) -> jax.Array:
    """[T, D] -> [T k, D]: the token of each row."""
    return x[order // k]


def _spread_backward(k, place, grad):
    by_token = grad[place].reshape(-1, k, grad.shape[-1])
    return by_token.sum(1, dtype=jnp.promote_types(grad.dtype, jnp.float32)).astype(grad.dtype), None, None


_spread.defvjp(lambda x, order, place, k: (x[order // k], place), _spread_backward)


def grouped_matmul(x: jax.Array, weight: jax.Array, sizes: jax.Array, backend: str = "auto") -> jax.Array:
    """x [R, D] sorted by expert, weight [X, D, F], sizes [X] with sum <= R -> [R, F] in the dtype of x.

    Rows past the sum belong to no expert: they come out zero and count for nothing in the gradients.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: choose one of {', '.join(BACKENDS)}")
    return _grouped_matmul(x, weight, sizes, backend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(x, weight, sizes, backend):
    return _product(x, weight.astype(x.dtype), sizes, False, backend)


def _forward(x, weight, sizes, backend):
    return _grouped_matmul(x, weight, sizes, backend), (x, weight, sizes)


def _backward(backend, saved, grad):
    x, weight, sizes = saved
    narrow = weight.astype(x.dtype)
    return _product(grad, narrow, sizes, True, backend), _outer(x, grad, sizes, weight.dtype, backend), None


_grouped_matmul.defvjp(_forward, _backward)


def _product(x, weight, sizes, transposed: bool, backend: str) -> jax.Array:
    """x [R, D], weight [X, D, F] ([X, F, D] if transposed) -> [R, F]."""
    loop, kernel = functools.partial(_loop_product, transposed), functools.partial(_kernel_product, transposed)
    y = _choose(backend, loop, kernel, x, weight, sizes)
    return jnp.where(jnp.arange(x.shape[0])[:, None] < sizes.sum(), y, 0)


def _outer(x, y, sizes, dtype, backend: str) -> jax.Array:
    """x [R, D], y [R, F] -> [X, D, F]."""
    return _choose(backend, functools.partial(_loop_outer, dtype), functools.partial(_kernel_outer, dtype), x, y, sizes)


def _choose(backend, loop, kernel, *operands):
    if backend == "auto" and operands[0].dtype not in (jnp.bfloat16, jnp.float32):
        backend = "loop"  # the kernels take no other type
    if backend == "auto":
        return jax.lax.platform_dependent(*operands, tpu=functools.partial(kernel, False), default=loop)
    return loop(*operands) if backend == "loop" else kernel(backend == "interpret", *operands)


# The loop. Blocks are taken in the order of their experts, and the last one of an expert reaches into the rows of the
# next, which come out right because they are written later. `_loop_outer` masks them instead.


def _block_length(rows: int, experts: int) -> int:
    """A power of two near the mean size of a group, in [16, 256]: fewer wasted rows, or fewer passes over a weight."""
    return min(256, max(16, 1 << (rows // experts - 1).bit_length())) if rows > experts else 16


def _blocks(sizes: jax.Array, block: int):
    """How many blocks there are, and a function of a block's number: its expert, first row, rows of its own."""
    counts = (sizes + block - 1) // block
    last, ends = jnp.cumsum(counts), jnp.cumsum(sizes)

    def block_of(number):
        expert = jnp.searchsorted(last, number, side="right")
        start = ends[expert] - sizes[expert] + (number - last[expert] + counts[expert]) * block
        return expert, start, jnp.minimum(block, ends[expert] - start)

    return last[-1], block_of


def _pad_rows(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, ((0, rows), (0, 0)))


def _loop_product(transposed, x, weight, sizes):
    block = _block_length(x.shape[0], weight.shape[0])
    number, block_of = _blocks(sizes, block)
    contraction = (((1,), (1 if transposed else 0,)), ((), ()))
    wide, padded = jnp.promote_types(x.dtype, jnp.float32), _pad_rows(x, block)

    def body(i, out):
        expert, start, _ = block_of(i)
        rows = jax.lax.dynamic_slice_in_dim(padded, start, block)
        matrix = jax.lax.dynamic_index_in_dim(weight, expert, keepdims=False)
        y = jax.lax.dot_general(rows, matrix, contraction, preferred_element_type=wide).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, y, start, axis=0)

    out = jnp.zeros((padded.shape[0], weight.shape[1 if transposed else 2]), x.dtype)
    return jax.lax.fori_loop(0, number, body, out)[: x.shape[0]]


def _loop_outer(dtype, x, y, sizes):
    block = _block_length(x.shape[0], sizes.shape[0])
    number, block_of = _blocks(sizes, block)
    wide, x, y = jnp.promote_types(x.dtype, jnp.float32), _pad_rows(x, block), _pad_rows(y, block)

    def body(i, total):
        expert, start, own = block_of(i)
        inside = jnp.arange(block)[:, None] < own
        left, right = (jnp.where(inside, jax.lax.dynamic_slice_in_dim(z, start, block), 0) for z in (x, y))
        part = jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        part = part + jax.lax.dynamic_index_in_dim(total, expert, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, part, expert, axis=0)

    total = jnp.zeros((sizes.shape[0], x.shape[1], y.shape[1]), wide)
    return jax.lax.fori_loop(0, number, body, total).astype(dtype)


# The kernels. Rows are padded to whole tiles; tiles that hold no row of any expert are skipped at run time.


def _tile(*sizes: int) -> tuple[int, ...]:
    """Rows, contraction, columns: at most 512, 1024, 1024, whole lanes; they fit 16 MiB of VMEM in float32."""
    return tuple(min(limit, -(-size // 128) * 128) for size, limit in zip(sizes, (512, 1024, 1024), strict=True))


def _kernel_product(transposed, interpret, x, weight, sizes):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    columns = weight.shape[1 if transposed else 2]
    tile = _tile(*x.shape, columns)
    padded = _pad_rows(x, -x.shape[0] % tile[0])
    y = gmm(padded, weight, sizes, x.dtype, tile, transpose_rhs=transposed, interpret=interpret)
    return y[: x.shape[0]]


def _kernel_outer(dtype, interpret, x, y, sizes):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tile = _tile(x.shape[0], x.shape[1], y.shape[1])
    x, y = (_pad_rows(z, -z.shape[0] % tile[0]) for z in (x, y))
    return tgmm(x.T, y, sizes, dtype, tile, interpret=interpret)
