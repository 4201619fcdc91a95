"""What a decoder must be and give, checked while its loop is built and traced: people write their own."""

from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.sampling.decoder import Decoder, Look, Move

_TYPES = {"write": jnp.bool_, "tokens": jnp.integer, "remask": jnp.bool_, "log_prob": jnp.floating}
_OPTIONAL = ("remask", "log_prob")


def check(decoder) -> None:
    """ValueError where it is nothing that a loop can be compiled for."""
    if isinstance(decoder, type):
        name = decoder.__name__
        raise ValueError(f"decoder={name}: is a class; give an object of it, as in {name}(mask_id=...)")
    if not isinstance(decoder, Decoder):
        raise ValueError(f"decoder={decoder!r}: must be an object of a subclass of sampling.decoder.Decoder")
    if any(leaf is decoder for leaf in jax.tree.leaves(decoder)):
        raise ValueError(f"decoder={type(decoder).__name__}: its class is no pytree; put "
                         "@sampling.decoder.decoder above it")


def update(decoder: Decoder, prediction, look: Look, state) -> tuple[Move, Any]:
    """Its step.

    Raises:
      ValueError: no move and state, or arrays that do not fit the look. Others would be broadcast, and leave masks.
    """
    name, given = type(decoder).__name__, decoder.update(prediction, look, state)
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], Move):
        raise ValueError(f"{name}.update: gives {type(given).__name__}; it must give a Move and the state")
    move, after = given
    for field, kind in _TYPES.items():
        value = getattr(move, field)
        if value is not None or field not in _OPTIONAL:
            _check_array(decoder, field, kind, value, look.tokens.shape)
    if _outline(after) != _outline(state):
        raise ValueError(f"{name}.update: gives the state {_outline(after)}; it must be as that of begin, "
                         f"{_outline(state)}")
    return move, after


def _check_array(decoder: Decoder, field: str, kind, value, shape: tuple[int, ...]) -> None:
    size, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if size == shape and dtype is not None and jnp.issubdtype(dtype, kind):
        return
    by = "reveal" if field == "write" and hasattr(decoder, "reveal") else "update"
    found = type(value).__name__ if size is None else f"{dtype}{list(size)}"
    raise ValueError(f"{type(decoder).__name__}.{by}: gives {found} for {field}; it must be of type "
                     f"{kind.__name__.rstrip('_')} and shape {list(shape)}, one for each position of the look")


def _outline(state) -> Any:
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", state)
