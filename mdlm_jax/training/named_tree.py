"""A pytree as a plain listing: every leaf by its name, with shape and dtype in words that JSON can hold.

Checkpoints store this listing, so that a saved state can be described, and compared with the state a program wants,
without the code that made it. Names are tuples of strings, the way from the root: ``("opt", "0", "mu", "kernel")``.
"""

import re
from collections.abc import Mapping
from typing import Any

Names = tuple[str, ...]
_KEY_DTYPE = re.compile(r"key<(\w+)>")  # the dtype of typed PRNG keys, as in key<threefry2x32>


def named_leaves(tree: Any) -> dict[Names, Any]:
    """Leaves by name, in the order of ``jax.tree.leaves``.

    Raises:
      ValueError: a leaf without a name (the tree is one array), or two leaves whose dotted names are the same.
    """
    import jax

    leaves: dict[Names, Any] = {}
    dotted = set()
    for path, leaf in jax.tree.leaves_with_path(tree):
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        if not names or ".".join(names) in dotted:
            raise ValueError(f"leaf {'.'.join(names)!r}: every leaf of the state needs a name of its own")
        dotted.add(".".join(names))
        leaves[names] = leaf
    return leaves


def nest(leaves: Mapping[Names, Any]) -> dict:
    """The nested dict with these leaves."""
    nested: dict = {}
    for names, leaf in leaves.items():
        inner = nested
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = leaf
    return nested


def describe(leaves: Mapping[Names, Any]) -> list[dict]:
    """Name, shape and dtype of each jax.Array, for JSON.

    Raises:
      TypeError: a leaf is no jax.Array.
      ValueError: a leaf has no elements, which orbax cannot store.
    """
    import jax

    described = []
    for names, leaf in leaves.items():
        where = "/".join(names)
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{where}: is of type {type(leaf).__name__}; every leaf of the state must be a jax.Array")
        if leaf.size == 0:
            raise ValueError(f"{where}: has shape {leaf.shape}; leave arrays without elements out")
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        dtype = f"key<{jax.random.key_impl(leaf)}>" if is_key else leaf.dtype.name
        described.append({"path": list(names), "shape": list(leaf.shape), "dtype": dtype})
    return described


def undescribe(described: list[dict]) -> dict[Names, Any]:
    """jax.ShapeDtypeStruct leaves, without shardings, from what ``describe`` gave."""
    import jax

    return {
        tuple(entry["path"]): jax.ShapeDtypeStruct(tuple(entry["shape"]), _dtype(entry["dtype"])) for entry in described
    }


def mismatches(stored: Mapping[Names, Any], wanted: Mapping[Names, Any], partial: bool = False) -> list[str]:
    """How two listings differ, one sentence a leaf; ``partial`` allows leaves that are stored and not wanted."""
    problems = [f"{'/'.join(names)} is not in the checkpoint" for names in wanted if names not in stored]
    if not partial:
        problems += [f"{'/'.join(names)} is in the checkpoint only" for names in stored if names not in wanted]
    for names in wanted.keys() & stored.keys():
        there, here = stored[names], wanted[names]
        if there.shape != here.shape or there.dtype != here.dtype:
            problems.append(f"{'/'.join(names)} is {_type(there)} in the checkpoint and {_type(here)} in this program")
    return problems


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _dtype(name: str):
    import jax

    match = _KEY_DTYPE.fullmatch(name)
    return jax.eval_shape(lambda: jax.random.key(0, impl=match[1])).dtype if match else jax.numpy.dtype(name)
