"""What a decoder must be and give, checked before its loop, while that is traced, and after: people write their own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.config import ConfigError
from mdlm_jax.config.names import nearest
from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.decoder import Decoder, Look, Move

_TYPES = {"write": jnp.bool_, "tokens": jnp.integer, "remask": jnp.bool_, "log_prob": jnp.floating}
_OPTIONAL = ("remask", "log_prob")
_WANTS = tuple(name for name in Drawn._fields if name != "current_log_prob")  # which has an argument of its own


def check(decoder) -> None:
    """ConfigError where it is nothing that a loop can be compiled for."""
    if isinstance(decoder, type):
        name = decoder.__name__
        raise ConfigError(f"decoder={name}: is a class; give an object of it, as in {name}(mask_id=...)")
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"decoder={decoder!r}: must be an object of a subclass of sampling.decoder.Decoder")
    name = type(decoder).__name__
    if any(leaf is decoder for leaf in jax.tree.leaves(decoder)):
        raise ConfigError(f"decoder={name}: its class is no pytree; put @sampling.decoder.decoder above it")
    if not hasattr(decoder, "mask_id"):
        raise ConfigError(f"decoder={name}: has no mask_id; give it the field mask_id: int = static()")
    _check_fields(decoder, name)
    _check_rule(decoder, name)


def _check_fields(decoder: Decoder, name: str) -> None:
    """Refuses what jax can neither compute with nor choose a program by."""
    if decoder.mask_id is not None and not hasattr(decoder.mask_id, "__index__"):
        raise ConfigError(f"{name}.mask_id={decoder.mask_id!r}: must be the id of the mask, as model.process.mask_id")
    for leaf in jax.tree.leaves(decoder):
        if not isinstance(leaf, (int, float)) and not hasattr(leaf, "dtype"):
            field = next((key for key, value in vars(decoder).items() if value is leaf), "tree_flatten")
            raise ConfigError(f"{name}.{field}={leaf!r}: is no number; give one, or mark the field static()")
    fields: tuple[dataclasses.Field, ...] = dataclasses.fields(decoder) if dataclasses.is_dataclass(decoder) else ()
    for one in fields:
        if one.metadata.get("static") and not _hashable(value := getattr(decoder, one.name)):
            raise ConfigError(f"{name}.{one.name}={value!r}: is static() and cannot be hashed; give a tuple, or leave "
                              "static() out")


def _hashable(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _check_rule(decoder: Decoder, name: str) -> None:
    """Refuses one that says nothing of what is written, or wants what nobody computes."""
    cls: Any = type(decoder)
    if cls.update is Decoder.update:
        raise ConfigError(f"decoder={name}: has no rule; give it update(self, prediction, look, state)")
    if not isinstance(decoder, ByConfidence):
        return
    if cls.update is ByConfidence.update and cls.reveal is ByConfidence.reveal:
        raise ConfigError(f"decoder={name}: has no rule; give it reveal(self, drawn, look)")
    if not isinstance(decoder.wants, (tuple, list)):
        raise ConfigError(f"{name}.wants={decoder.wants!r}: must be a tuple of names, such as ('top_log_prob',)")
    for want in decoder.wants:
        if want not in _WANTS:
            close = nearest(str(want), _WANTS)
            raise ConfigError(f"{name}.wants: {want!r} is nothing that is computed; "
                              + (f"did you mean {close[0]!r}?" if close else f"choose of {', '.join(_WANTS)}"))


def is_own(decoder: Decoder) -> bool:
    """Whether its class is no part of this library."""
    return type(decoder).__module__.partition(".")[0] != __name__.partition(".")[0]


def check_written(decoder: Decoder, canvas, columns: int) -> None:
    """ConfigError for ids among what may be written that no head has. ``columns``: of the network; 0: not known."""
    mask_id = -1 if decoder.mask_id is None else decoder.mask_id
    tokens = jnp.where(canvas.editable & (canvas.tokens != mask_id), canvas.tokens, 0)
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or columns and most >= columns:
        found = least if least < 0 else most
        limit = f"lie in 0..{columns - 1}" if columns else "not be negative"
        raise ConfigError(f"{type(decoder).__name__}.update: writes the id {found}; Move.tokens must {limit}")


def check_left(decoder: Decoder, canvas, finished: jax.Array) -> None:
    """ConfigError for masks in rows that are not finished, after the last block."""
    masks = canvas.editable & (canvas.tokens == decoder.mask_id) & ~finished[:, None]
    count = masks.sum(1)
    if not decoder.partial and (most := int(count.max())):
        name, reveals = type(decoder).__name__, isinstance(decoder, ByConfidence)
        remedy = ("reveal must take at least look.due at each step" if reveals else
                  "update must have written them all by the last step, look.last")
        raise ConfigError(f"{name}: left {most} masks in row {int(count.argmax())}; {remedy} (or set partial = True in "
                          "the class, where that is meant)")


def update(decoder: Decoder, prediction, look: Look, state) -> tuple[Move, Any]:
    """Its step.

    Raises:
      ConfigError: no move and state, or arrays that do not fit the look: others would be broadcast, and leave masks. A
        scalar stands for all positions, but not of ``write``.
    """
    name, given = type(decoder).__name__, _asked(decoder, prediction, look, state)
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], Move):
        raise ConfigError(f"{name}.update: gives {type(given).__name__}; it must give a Move and the state")
    move, after = given
    for field, kind in _TYPES.items():
        value = getattr(move, field)
        if value is not None or field not in _OPTIONAL:
            _check_array(decoder, field, kind, value, look.tokens.shape)
    if _outline(after) != _outline(state):
        raise ConfigError(f"{name}.update: gives the state {_outline(after)}; it must be as that of begin, "
                         f"{_outline(state)}")
    return move, after


def _asked(decoder: Decoder, prediction, look: Look, state):
    """What its update gives; where it fails on what it does not want, and so was not given, that is said."""
    try:
        return decoder.update(prediction, look, state)
    except (TypeError, AttributeError) as error:
        if not isinstance(decoder, ByConfidence) or not (lacking := _lacking(decoder)):
            raise
        raise ConfigError(f"{type(decoder).__name__}.reveal: reads drawn.{lacking}, which was not computed; add "
                          f"{lacking!r} to wants") from error


def _lacking(decoder: ByConfidence) -> str | None:
    """A field of `Drawn` that its rule names and does not want."""
    named = getattr(getattr(type(decoder).reveal, "__code__", None), "co_names", ())
    return next((name for name in named if name in _WANTS and name not in ("sample", *decoder.wants)), None)


def _check_array(decoder: Decoder, field: str, kind, value, shape: tuple[int, ...]) -> None:
    size, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    fits = size == shape or size == () and field != "write"  # one for all is no mistake there
    if fits and dtype is not None and jnp.issubdtype(dtype, kind):
        return
    by = "reveal" if field == "write" and hasattr(decoder, "reveal") else "update"
    found = type(value).__name__ if size is None else f"{dtype}{list(size)}"
    raise ConfigError(f"{type(decoder).__name__}.{by}: gives {found} for {field}; it must be of type "
                     f"{kind.__name__.rstrip('_')} and shape {list(shape)}, one for each position of the look")


def _outline(state) -> Any:
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", state)
