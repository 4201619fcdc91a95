"""ASSD (arXiv 2504.20456): one token after another, exactly, in fewer forwards, by networks of any order.

Such a network tells the law of any token given any others, so it is its own draft: one forward gives the laws of the
next holes given what is written, and another checks what was drawn from them, each draft given those before it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws, lattice
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, random_scores, static
from mdlm_jax.sampling.forward import put_at
from mdlm_jax.sampling.speculative import log_law, rest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drafts:
    """Of the first holes: tokens [B, K - 1] int32, their log-probabilities [B, K - 1] in nats under the laws they were
    drawn from, whose hidden states are [B, K - 1, D]; and how many there are [B] int32."""

    tokens: jax.Array
    log_prob: jax.Array
    hidden: jax.Array
    count: jax.Array


@decoder
class ASSD(Decoder):
    """Draws the holes from left to right given everything that is given, wherever it stands, and all holes before: the
    law of one token a forward, in at most as many forwards as tokens, with K drafted at a time.

    The order is that of the recursive binary lattice, what is given first, then the holes ascending. Behind the row
    stand masks for 2 K - 1 holes, which see what is written and the drafts before their place. A forward without
    drafts writes the first hole, whose law is exact, and drafts K - 1 more. The next keeps each with probability
    min(1, q / p), q its own law given the drafts before and p the one it was drawn from, and replaces the first that
    is not kept by a draw from (q - p)+. Where all are kept, it writes the hole behind them and drafts on: its masks
    there have seen them all. So every forward writes at least one token, and one that checks up to K.

    Attributes:
      mask_id: the mask token.
      drafts: K; 1 is one token a forward, without drafts.
      fresh: after a draft that was not kept, draft in a forward that shows what was written in its place; False: at
        once, by what was said with it in view. The law is the same; how many drafts are kept is not.
      head_budget: logits alive at once; it changes memory, not results.
    """

    mask_id: int = static()
    drafts: int = static(5)
    fresh: bool = static(True)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    reads_steps = False
    remembers = True
    ordered = True
    reach = 0

    def __post_init__(self):
        self._check_law()
        check("drafts", self.drafts, lambda k: k >= 1 and k == int(k), "must be a whole number of at least 1, which is "
              "one token a forward")

    @property
    def scorable(self) -> bool:
        return self.drafts == 1

    @property
    def asked(self) -> int:
        """Holes that a forward asks about: K - 1 drafts, the hole behind them, and K - 1 to be drafted."""
        return 2 * self.drafts - 1

    def shadows(self, block: int) -> int:
        del block
        return self.asked

    def check(self, call: Plan) -> None:
        if call.contract != "permutation":
            raise ValueError(f"decoder: ASSD asks a network for a token given any others, and this one is "
                             f"{call.contract}; train one with train.objective=any_subset:0.01,0.1 or any_order, or "
                             "take another decoder")
        if call.shifted:
            raise ValueError("decoder: ASSD scores a token by a mask in its own place, and this network scores it in "
                             "the place before; set model.logit_shift=False")
        if call.pooled or call.backend == "splash":
            what = "shares pools of experts (moe.block)" if call.pooled else "attends by backend='splash'"
            raise ValueError(f"decoder: ASSD runs on masks beside the row, which a network that {what} cannot have; "
                             "use backend='xla' and no moe.block")

    def one_by_one(self) -> "ASSD":
        return dataclasses.replace(self, drafts=1)

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps
        return block_length

    def begin(self, look: Look, hidden: jax.Array) -> Drafts:
        rows, number = look.tokens.shape[0], self.drafts - 1
        return Drafts(jnp.zeros((rows, number), jnp.int32), jnp.zeros((rows, number), jnp.float32),
                      jnp.zeros((rows, number, hidden.shape[-1]), hidden.dtype), jnp.zeros((rows,), jnp.int32))

    def inputs(self, call: Call, look: Look, state: Drafts) -> Call:
        """The row with its drafts, what is not written hidden, and masks for the holes asked about behind it."""
        holes, there = self._holes(look)
        drafted = jnp.arange(self.drafts - 1) < state.count[:, None]
        at = jnp.where(drafted, holes[:, : self.drafts - 1], look.tokens.shape[1])  # beyond the end: dropped
        canvas = look.canvas
        written = ~canvas.editable | (canvas.tokens != self.mask_id)
        seen = put_at(written, index=at, values=jnp.ones_like(drafted))
        tokens = put_at(call.tokens, index=at, values=state.tokens)
        masks = jnp.full_like(holes, self.mask_id)
        segment = jnp.where(seen, look.segment, 0), jnp.take_along_axis(look.segment, holes, axis=1)
        return dataclasses.replace(
            call, tokens=jnp.concatenate([tokens, masks], axis=1), shadow=jnp.where(there, holes, -1),
            segment=jnp.concatenate(segment, axis=1), order=lattice.order(canvas.editable))

    def update(self, prediction: Prediction, look: Look, state: Drafts) -> tuple[Move, Drafts]:
        holes, there = self._holes(look)
        asked = dataclasses.replace(prediction, hidden=prediction.hidden[:, look.tokens.shape[1] :])
        kept = self._kept(asked, look, holes, state)
        replaced = kept < state.count
        at = kept[:, None] + jnp.arange(self.drafts)  # the next hole, and those to be drafted behind it
        ahead = dataclasses.replace(asked, hidden=jnp.take_along_axis(asked.hidden, at[..., None], axis=1))
        drawn = self._drawn(ahead, look, jnp.take_along_axis(holes, at, axis=1), look.forced)
        token = drawn.sample[:, 0]
        if self.drafts > 1:
            token = jnp.where(replaced, self._replacement(ahead, look, state, kept), token)
        number = jnp.arange(self.drafts)
        tokens = jnp.where(number < kept[:, None], jnp.pad(state.tokens, ((0, 0), (0, 1))), token[:, None])
        write = (number <= kept[:, None]) & there[:, : self.drafts]
        count = jnp.take_along_axis(there, at, axis=1)[:, 1:].sum(1, dtype=jnp.int32)
        return self._move(look, jnp.where(write, holes[:, : self.drafts], look.tokens.shape[1]), tokens, drawn), Drafts(
            drawn.sample[:, 1:], drawn.law_log_prob[:, 1:], ahead.hidden[:, 1:],
            jnp.where(replaced, 0, count) if self.fresh else count)

    def _holes(self, look: Look) -> tuple[jax.Array, jax.Array]:
        """[B, 2 K - 1]: the columns of the first holes, int32, and whether there are so many."""
        holes = look.masked & look.inside
        order = jnp.argsort(~holes, axis=1, stable=True)
        order = jnp.pad(order, ((0, 0), (0, max(0, self.asked - order.shape[1]))))[:, : self.asked]
        return order.astype(jnp.int32), jnp.arange(self.asked) < holes.sum(1, keepdims=True)

    def _drawn(self, prediction: Prediction, look: Look, columns: jax.Array, forced=None) -> draws.Drawn:
        """Draws, or what is ``forced`` [B, W], at ``columns`` [B, N], which ``prediction`` [B, N, D] scores."""
        forced = None if forced is None else jnp.take_along_axis(forced, columns, axis=1)
        return draws.draw(
            prediction, look.stream(0), suppress=self.suppressed, wants=("sample", "law_log_prob"), forced=forced,
            positions=jnp.take_along_axis(look.place, columns, axis=1),
            chunk=chunk_length(columns.shape[0], prediction.logits_held, self.head_budget), **self.law())

    def _kept(self, asked: Prediction, look: Look, holes: jax.Array, state: Drafts) -> jax.Array:
        """[B] int32: how many drafts are kept, those before the first that is not."""
        number = self.drafts - 1
        if not number:
            return state.count
        first = dataclasses.replace(asked, hidden=asked.hidden[:, :number])
        own = draws.draw(first, look.stream(0), suppress=self.suppressed, wants=("sample",), forced=state.tokens,
                         chunk=chunk_length(len(holes), asked.logits_held, self.head_budget), **self.law())
        lots = random_scores(look.stream(1), jnp.take_along_axis(look.place, holes[:, :number], axis=1))
        keep = (-lots < own.law_log_prob - state.log_prob) & (jnp.arange(number) < state.count[:, None])
        return jnp.cumprod(keep, axis=1).sum(1, dtype=jnp.int32)

    def _replacement(self, ahead: Prediction, look: Look, state: Drafts, kept: jax.Array) -> jax.Array:
        """[B]: a token in place of draft ``kept``, which was not; anything where all were."""
        index = jnp.minimum(kept, self.drafts - 2)[:, None, None]
        return rest(self._log_law(ahead, ahead.hidden[:, 0]),
                    self._log_law(ahead, jnp.take_along_axis(state.hidden, index, axis=1)[:, 0]), look.stream(2))

    def _log_law(self, prediction: Prediction, hidden: jax.Array) -> jax.Array:
        """[B, V] of hidden states [B, D]."""
        return log_law(draws.law(suppressed_logits(prediction.head, hidden, self.suppressed), **self.law()),
                       self.temperature)

    def _move(self, look: Look, columns: jax.Array, tokens: jax.Array, drawn: draws.Drawn) -> Move:
        """``tokens`` [B, K] written at ``columns``; one beyond the end is dropped."""
        def put(empty, values):
            return put_at(empty, index=columns, values=values)

        write = put(jnp.zeros(look.tokens.shape, bool), jnp.ones(columns.shape, bool))
        log_prob = None if look.forced is None else put(jnp.zeros(look.tokens.shape, jnp.float32), drawn.law_log_prob)
        return Move(write, put(look.tokens, tokens), log_prob=log_prob)
