"""A pass of the autoregressive twin over a window: masks are drawn from left to right, each given all before it.

What is there already is forced through the twin. A row's pass goes from its first mask to its last one, beside a cache
that one forward over the row as it stands has filled, so that prompts cost no steps; each row is at a column of its
own, and none waits for another's prompt. The pass takes as many steps as the longest of these stretches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.denoise import one_before
from mdlm_jax.models.twin import Twin
from mdlm_jax.sampling.decoder import Look
from mdlm_jax.sampling.forward import put_at

_NONE = -1  # stands for what comes before a row


class Written(NamedTuple):
    """tokens: [B, W] int32, those of the window with draws at the masks. log_prob: [B, W] float32, nats, of the draws
    under the law they were drawn from, 0 elsewhere; only where tokens are forced, else None."""

    tokens: jax.Array
    log_prob: jax.Array | None


def write(twin: Twin, look: Look, where: jax.Array, said: Callable[[Prediction, jax.Array], Prediction], *,
          suppress: int | None, law: dict[str, Any]) -> Written:
    """Draws at ``where`` [B, W] bool, from left to right.

    Args:
      twin: what gives p(x_i | x_<i): a `Twin`, or alike.
      look: its window must begin with the row.
      said: (the twin's prediction of one token of each row [B, 1, ...], its columns [B, 1]) -> the prediction that is
        drawn from.
      suppress: the id that is never drawn.
      law: further arguments of `core.draws.draw`: temperature and truncation.
    """
    rows, width = where.shape
    some = where.any(1)
    first = jnp.where(some, where.argmax(1), width)
    last = jnp.where(some, width - 1 - where[:, ::-1].argmax(1), -1)
    segment, forced = look.segment, look.forced
    begins = one_before(jnp.zeros_like(look.tokens), segment, _NONE) == _NONE
    cache = twin.begin(look.tokens, segment, look.place)
    log_prob = jnp.zeros((rows, width), jnp.float32)

    def step(carry):
        number, cache, tokens, log_prob = carry
        column = (first + number)[:, None]
        inside, column = column <= last[:, None], jnp.minimum(column, width - 1)
        at = lambda values, index=column: jnp.take_along_axis(values, index, axis=1)  # noqa: E731
        before = jnp.where(at(begins), twin.start_id, at(tokens, jnp.maximum(column - 1, 0)))
        found, cache = twin.step(cache, before, at(segment), at(look.place), jnp.where(inside, column, width))
        drawn = draws.draw(said(found, column), look.stream(0), suppress=suppress, wants=("sample",),
                           forced=None if forced is None else at(forced), positions=at(look.place), **law)
        put = jnp.where(inside & at(where), column, width)  # beyond the end: dropped
        tokens = put_at(tokens, index=put, values=drawn.sample)
        if forced is not None:
            log_prob = put_at(log_prob, index=put, values=drawn.law_log_prob)
        return number + 1, cache, tokens, log_prob

    longest = (last - first).max()
    carry = (jnp.int32(0), cache, look.tokens, log_prob)
    _, _, tokens, log_prob = jax.lax.while_loop(lambda carry: carry[0] <= longest, step, carry)
    return Written(tokens, None if forced is None else log_prob)


def added(prediction: Prediction, own: jax.Array | None) -> jax.Array | None:
    """[V], what the call adds to the logits (`sampling.loop.begin`: ``bias``), of a prediction whose network's head has
    the bias ``own`` [at least V]; None: nothing."""
    bias = prediction.head.bias
    if bias is None or own is None:
        return bias
    return bias - own[: bias.shape[-1]].astype(bias.dtype)
