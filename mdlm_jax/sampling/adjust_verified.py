"""ADJUST made lossless: what the joint layer drafts is kept only as the network's own law allows.

Speculative sampling (arXiv 2302.01318) over the canvas: the next forward runs on the row with 0, 1, ..., K drafted
tokens at once, so that the network's own one-by-one decoding can be followed along the drafts. A forward is then of
K + 1 rows in place of one: it pays where the device waits for weights and not for products, as with few rows at a time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.copies import side_by_side
from mdlm_jax.sampling.decoder import Look, Move, Plan, decoder, fold
from mdlm_jax.sampling.forward import put_at
from mdlm_jax.sampling.speculative import log_law, rest

_DRAFTS = 64  # streams of the step's key from here on are those of drafts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drafts:
    """tokens, places (columns of the window) [B, K] int32, the hidden states that they were drawn from [B, K, D], and
    how many there are [B]."""

    tokens: jax.Array
    places: jax.Array
    hidden: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Checked:
    """tokens, write [B, W] so far; the network's hidden states [B, W, D] where that led; going [B]."""

    tokens: jax.Array
    write: jax.Array
    hidden: jax.Array
    going: jax.Array


@decoder
class AdjustVerified(Adjust):
    """One-by-one decoding, exactly, in fewer forwards: the joint layer drafts K tokens, and the next forward, on K + 1
    copies of the row, keeps each with probability min(1, p / q) where the network would have written at that position
    too.

    The first draft that is not kept is replaced by a draw from (p - q)+, or where the network would have written
    elsewhere by its own draw there; behind K kept drafts it draws one token more. So 1 to K + 1 tokens a forward, whose
    law is that of `Adjust` with 1 token a forward.

    Attributes:
      tokens: K, drafts; 0: as many as the layer was trained for.
      max_entropy, budget: of drafts: the first one that is above, and all behind it, are left out.
    """

    scorable = False
    remembers = True
    steady = True

    def __post_init__(self):
        if self.joint is None:
            raise ValueError(f"joint=None: {type(self).__name__} needs a joint layer that was trained for this "
                             "network; load a run of train.objective=joint:3 (docs/guides/methods.md)")
        if self.tokens > self.joint.most - 1 and not self.beyond:
            raise ValueError(f"tokens={self.tokens}: the joint layer was trained for at most {self.joint.most - 1} "
                             "drafts behind a token; lower it, train a deeper one, or set beyond=True")
        super().__post_init__()

    @property
    def drafts(self) -> int:
        return self.tokens or self.joint.most - 1

    @property
    def copies(self) -> int:
        return self.drafts + 1

    @property
    def reach(self) -> int:
        return 0 if self.joint.scope == "row" else 1

    def check(self, call: Plan) -> None:
        if call.cache != "none":
            raise ValueError(f"cache={call.cache!r}: drafts are checked on copies of whole rows; use cache='none'")
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: the joint layer reads one network's hidden states, and "
                             "guidance has two; leave it at 0")
        self._check_block(call)

    def one_by_one(self) -> Adjust:
        return dataclasses.replace(_plain(self), tokens=1)

    def begin(self, look: Look, hidden: Asked) -> Drafts:
        rows, none = look.tokens.shape[0], jnp.zeros((look.tokens.shape[0], self.drafts), jnp.int32)
        return Drafts(none, none, jnp.zeros((rows, self.drafts, hidden.shape[-1]), hidden.dtype),
                      jnp.zeros((rows,), jnp.int32))

    def inputs(self, call: Call, look: Look, state: Drafts) -> Call:
        """The row with 0 drafts, with 1, ..., with all, side by side."""
        copies, tokens = [call.tokens], call.tokens
        for j in range(self.drafts):
            at = jnp.take_along_axis(look.index, state.places[:, j : j + 1], axis=1)
            at = jnp.where((j < state.count)[:, None], at, tokens.shape[1])  # beyond the end: dropped
            tokens = put_at(tokens, index=at, values=state.tokens[:, j : j + 1])
            copies.append(tokens)
        return side_by_side(call, jnp.stack(copies, axis=1))

    def update(self, prediction: Prediction, look: Look, state: Drafts) -> tuple[Move, Drafts]:
        rows, width = look.tokens.shape
        hidden = prediction.hidden.reshape(rows, self.copies, width, -1)
        now = _Checked(look.tokens, jnp.zeros((rows, width), bool), hidden[:, 0], jnp.ones((rows,), bool))
        for j in range(self.copies):
            now = self._checked(dataclasses.replace(prediction, hidden=hidden[:, j]), look, state, j, now)
        return Move(now.write, now.tokens), self._drafted(prediction, look, now)

    def _checked(self, prediction: Prediction, look: Look, state: Drafts, j: int, now: _Checked) -> _Checked:
        """The network's token behind j kept drafts: the next draft, if it may be."""
        masked = look.masked & look.inside & ~now.write
        own = dataclasses.replace(look, keys=fold(look.keys, j))
        place, _, drawn = self.surest(prediction, own, masked)
        index = place.argmax(1)
        token, kept = jnp.take_along_axis(drawn.sample, index[:, None], axis=1)[:, 0], jnp.zeros_like(now.going)
        if j < self.drafts:
            draft, same = state.tokens[:, j], (j < state.count) & (state.places[:, j] == index)
            p = self._log_law(prediction, jnp.take_along_axis(prediction.hidden, index[:, None, None], axis=1))
            q = self._log_law(prediction, state.hidden[:, j : j + 1])
            chance = jnp.take_along_axis(p - q, draft[:, None], axis=1)[:, 0]
            lot = jax.vmap(lambda key: categorical.exponential(key, ()))(own.stream(1))
            kept = same & (-lot < chance)
            token = jnp.where(same, jnp.where(kept, draft, rest(p, q, own.stream(2))), token)
        going = now.going & masked.any(1)
        write = place & going[:, None]
        return _Checked(
            jnp.where(write, token[:, None], now.tokens), now.write | write,
            jnp.where(now.going[:, None, None], prediction.hidden, now.hidden), going & kept,
        )

    def _drafted(self, prediction: Prediction, look: Look, now: _Checked) -> Drafts:
        """Drafts behind what has been written, each told of the ones before."""
        tokens, hidden, write, found = now.tokens, now.hidden, now.write, []
        rows = tokens.shape[0]
        spent, going = jnp.zeros((rows,), jnp.float32), jnp.ones((rows,), bool)
        for k in range(self.drafts):
            hidden = self.told(look, tokens, hidden)
            masked = look.masked & look.inside & ~write
            own = dataclasses.replace(look, keys=fold(look.keys, _DRAFTS + k))
            place, entropy, drawn = self.surest(dataclasses.replace(prediction, hidden=hidden), own, masked)
            index, spent = place.argmax(1), spent + entropy
            going = going & masked.any(1) & (entropy <= self.max_entropy) & (spent <= self.budget)
            tokens, write = jnp.where(place, drawn.sample, tokens), write | place
            found.append((jnp.take_along_axis(drawn.sample, index[:, None], axis=1)[:, 0], index,
                          jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0], going))
        written, places, states, there = (jnp.stack(part, axis=1) for part in zip(*found, strict=True))
        return Drafts(written.astype(jnp.int32), places.astype(jnp.int32), states, there.sum(1, dtype=jnp.int32))

    def _log_law(self, prediction: Prediction, hidden: jax.Array) -> jax.Array:
        """[B, V]: the law that is drawn from, of hidden states [B, 1, D]; at temperature 0 all of it on the argmax."""
        logits = self.law()["sharpen"](suppressed_logits(prediction.head, hidden[:, 0], self.suppressed))
        return log_law(logits, self.temperature)


def _plain(rule: AdjustVerified) -> Adjust:
    return Adjust(**{field.name: getattr(rule, field.name) for field in dataclasses.fields(Adjust)})
