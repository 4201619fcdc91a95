"""ADJUST (arXiv 2509.22738): several tokens a forward, each from a law that knows the ones just written.

`models.joint` is the small layer that tells the network's hidden states so.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import Drawn
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.joint import JointSampler
from mdlm_jax.sampling.confidence import drawn_law
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, static, take_best


class _Written(NamedTuple):
    """What a step has written so far.

    tokens: [B, W] of the window. hidden: [B, W, D]. write: [B, W] bool. log_prob: [B, W]. spent: [B] nats, the sum of
    the entropies that were drawn from. going: [B] bool. passes: [] int32, tokens drawn, or passed over, in a row.
    """

    tokens: jax.Array
    hidden: jax.Array
    write: jax.Array
    log_prob: jax.Array
    spent: jax.Array
    going: jax.Array
    passes: jax.Array


@decoder
class Adjust(Decoder):
    """Draws K tokens a forward one after the other: at the mask of the least entropy, then the joint layer
    tells every position what was written, then the next.

    Entropies are those of the law that is drawn from (temperature, nucleus, top k), as it stands after the tokens so
    far, so that positions depend on the canvas alone. 1 token a forward is the network's own one-by-one decoding.

    Attributes:
      joint: the joint layer's weights, with the network's table.
      tokens: K, tokens a forward; K - 1 passes of the layer. 0: as many as the layer was trained for. 1 needs no
        layer.
      max_entropy: stop before a token whose entropy, in nats, is above this one; the first of a forward is always
        written. The largest number: never.
      budget: stop before the entropies of the forward's tokens, the first left out, add up to more than so many nats.
      beyond: allow more tokens a forward than the layer was trained for.
    """

    joint: JointSampler | Any = None
    mask_id: int = static(0)
    tokens: int = static(0)
    max_entropy: float = float("inf")
    budget: float = float("inf")
    beyond: bool = static(False)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    scorable = True
    reads_steps = False
    opens = True

    def __post_init__(self):
        self._check_law()
        check("tokens", self.tokens, lambda k: k >= 0, "must be at least 1 token a forward, or 0 for the layer's own")
        for name in ("max_entropy", "budget"):
            check(name, getattr(self, name), lambda x: x >= 0, "must be 0 or positive, in nats")
        if self.tokens == 1:
            return
        if self.joint is None:
            given = f"tokens={self.tokens}" if self.tokens else "joint=None"
            raise ValueError(f"{given}: {type(self).__name__} needs a joint layer that was trained for "
                             "this network; load a run of train.objective=joint:3 (docs/guides/methods.md), or draw "
                             "tokens=1 a forward")
        if self.tokens > self.joint.most and not self.beyond:
            raise ValueError(f"tokens={self.tokens}: the joint layer was trained for at most {self.joint.most} tokens "
                             "a forward, and more go wrong; lower it, train a deeper one, or set beyond=True")

    @property
    def each(self) -> int:
        """K."""
        return self.tokens or self.joint.most

    @property
    def reach(self) -> int:
        return 0 if self.each > 1 and self.joint.scope == "row" else 1

    def check(self, call: Plan) -> None:
        if call.guidance and self.each > 1:
            raise ValueError(f"guidance={call.guidance}: the joint layer reads one network's hidden states, and "
                             "guidance has two; leave it at 0")
        if self.each > 1 and self.joint.scope == "row" and call.cache != "none":
            raise ValueError(f"cache={call.cache!r}: this joint layer sees whole rows, and windows beside a cache have "
                             "hidden states of a block alone; use cache='none', or train one with scope block")
        if self.each > 1:
            self._check_block(call)

    def _check_block(self, call: Plan) -> None:
        trained = self.joint.network.block_length
        if self.joint.scope == "block" and call.block_length != trained:
            raise ValueError(f"block_length={call.block_length}: this joint layer was trained on blocks of {trained}; "
                             "set it so")

    def law(self) -> dict[str, Any]:
        return drawn_law(self)

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps
        return block_length

    def one_by_one(self) -> "Adjust":
        return dataclasses.replace(self, tokens=1)

    def update(self, prediction: Prediction, look: Look, state) -> tuple[Move, Any]:
        rows = look.tokens.shape[0]
        begin = _Written(
            look.tokens, prediction.hidden, jnp.zeros(look.tokens.shape, bool),
            jnp.zeros(look.tokens.shape, jnp.float32), jnp.full((rows,), -jnp.inf), jnp.ones((rows,), bool),
            jnp.int32(0),
        )
        found = self._reveal(prediction, look, begin)
        if self.each > 1:
            found = jax.lax.while_loop(
                lambda now: (now.passes < self.each) & now.going.any(),
                lambda now: self._reveal(prediction, look, self._told(look, now)),
                found,
            )
        return Move(found.write, found.tokens, log_prob=found.log_prob), state

    def _reveal(self, prediction: Prediction, look: Look, now: _Written) -> _Written:
        """One token more of every row that goes on."""
        masked = look.masked & look.inside & ~now.write
        alone = jnp.zeros_like(now.going)
        if look.opening:  # the block's first token and no other, where it is a mask: no window will score it
            opening = masked & (jnp.cumsum(look.inside, axis=1) == 1)
            alone = opening.any(1)
            masked = jnp.where(alone[:, None], opening, masked)
        place, entropy, drawn = self.surest(dataclasses.replace(prediction, hidden=now.hidden), look, masked)
        first = jnp.isneginf(now.spent)
        spent = jnp.where(first, 0.0, now.spent + entropy)
        going = now.going & masked.any(1) & (first | ((entropy <= self.max_entropy) & (spent <= self.budget)))
        place = place & going[:, None]
        log_prob = now.log_prob if drawn.law_log_prob is None else jnp.where(place, drawn.law_log_prob, now.log_prob)
        return now._replace(tokens=jnp.where(place, drawn.sample, now.tokens), write=now.write | place,
                            log_prob=log_prob, spent=spent, going=going & ~alone, passes=now.passes + 1)

    def surest(self, prediction: Prediction, look: Look, masked: jax.Array) -> tuple[jax.Array, jax.Array, Drawn]:
        """Of the masks the one of least entropy, [B, W] bool; that entropy, [B]; and what is drawn there."""
        entropy = self.draw(prediction, look, ("entropy",), where=masked).entropy
        place = take_best(-entropy, masked, jnp.ones(masked.shape[:1], jnp.int32))
        drawn = self.draw(prediction, look, ("sample",), where=place, most=1)
        return place, jnp.where(place, entropy, 0.0).sum(1), drawn

    def _told(self, look: Look, now: _Written) -> _Written:
        return now._replace(hidden=self.told(look, now.tokens, now.hidden))

    def told(self, look: Look, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
        """The hidden states after a pass of the joint layer over the window's tokens."""
        return self.joint.step(tokens, hidden, attention_mask=look.segment, positions=look.place)
