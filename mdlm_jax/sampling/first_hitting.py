"""First hitting (arXiv 2409.02908): the masked process reversed event by event instead of on a grid of times."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core.process import Process
from mdlm_jax.sampling import clock
from mdlm_jax.sampling.decoder import Decoder, Look, Move, decoder, lots, random_scores, ranks, static

SECOND = ("none", "extrapolate", "correct")


class Hits(NamedTuple):
    """What a row remembers between calls.

    Attributes:
      level: [B] float32, log(1 - alpha) at the last hit.
      count: [B] int32, tokens the last call revealed; 0 before the first.
      share: [B, W] float32, rank / count of the tokens that the last call revealed, 0 elsewhere.
      hidden: [B, W, D], the last prediction, where the next is extrapolated from it; else None.
    """

    level: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    share: jax.Array
    hidden: jax.Array | None


@decoder
class FirstHitting(Decoder):
    """The next time a mask is hit is drawn, then which of the masks it is, then its token: exact, in L calls at most.

    With n masks left, 1 - alpha(next) = (1 - alpha(now)) u^(1/n) with u ~ U(0, 1), whatever the schedule; which mask is
    uniform; the token is drawn from the network at that time. Every row has a time of its own, which only networks
    that read it notice. No grid, so no error of one: the law is that of the process in continuous time.

    Attributes:
      process: the masked process the network was trained with.
      parallel: False: one token a call; ``steps`` must be as many as the masks, or more. True: the masks are shared
        evenly among the steps (the remainder first); a call's tokens are drawn from the prediction at the first of
        their times, and are independent given what was there before.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the model's own law.
      second: what is done, without another call, about tokens that come together: none, extrapolate, correct.
      head_budget: logits alive at once; it changes memory, not results.

    The j-th of the tokens of a call should see a canvas with j masks fewer (j = 0, 1, ...). ``extrapolate`` draws it
    from p + (p - earlier) j / m, where m tokens came with the call before, cut at 0 and made to sum to one (the line
    through two predictions, over the number of masks: what time stands for). ``correct`` waits for the next prediction
    and with probability j / m, m the tokens of its own call, draws it again from the row that scores it there: the
    line between the two predictions. That row must mean something for tokens the network sees, which training on masks
    alone does not teach. The paper's second-order variants are these two in spirit; their formulas are ours.
    """

    process: Process = static()
    parallel: bool = static(False)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    second: str = static("none")
    head_budget: int = static(1 << 22)

    tells_time = True

    def __post_init__(self):
        self._check_law()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: masks alone are hit once and stay; use Ancestral")
        if self.second not in SECOND:
            raise ValueError(f"second={self.second!r}: choose one of {', '.join(SECOND)}")
        if self.second != "none" and not self.parallel:
            raise ValueError(f"second={self.second!r}: is for several tokens a call; set parallel=True")

    @property
    def mask_id(self) -> int | Any:
        return self.process.mask_id

    @property
    def remembers(self) -> bool:
        return self.second == "extrapolate"

    def check(self, call) -> None:
        self._check_one_schedule(call)
        if not self.parallel and call.steps < call.tokens:
            raise ValueError(f"steps={call.steps}: one by one, the {call.tokens} tokens of a block take as many steps; "
                             "give these, or parallel=True")

    def begin(self, look: Look, hidden: jax.Array | None) -> Hits:
        rows = look.step.shape
        start = jnp.log(self.process.schedule.complement(jnp.ones(rows, jnp.float32)))
        none = jnp.zeros(look.tokens.shape, jnp.float32)
        return Hits(start, jnp.zeros(rows, jnp.int32), none, hidden if self.remembers else None)

    def inputs(self, call, look: Look, state: Hits):
        """The call at the time of the next hit."""
        level = state.level + self._falls(look)[:, 0]
        schedule = self.process.schedule
        noise = clock.whole_noise(look, jnp.exp(level), schedule)
        return dataclasses.replace(call, time=schedule.inverse_complement(noise))

    def update(self, prediction, look: Look, state: Hits) -> tuple[Move, Hits]:
        rank = ranks(random_scores(look.stream(2), look.place), look.masked)
        chosen = look.masked & (rank < look.quota[:, None])
        again, ahead = jnp.zeros_like(chosen), None
        if self.second == "correct":
            again = look.editable & lots(look.stream(3), look.place, state.share)
        if self.second == "extrapolate":
            ahead = (state.hidden, _share(rank, state.count, chosen))
        drawn = self.draw(prediction, look, ("sample",), where=chosen | again, most=None if self.parallel else 1,
                          extrapolate=ahead)
        count = chosen.sum(1, dtype=jnp.int32)
        falls = jnp.where(jnp.arange(chosen.shape[1]) < count[:, None], self._falls(look), 0.0)
        hidden = prediction.hidden if self.remembers else None
        after = Hits(state.level + falls.sum(1), count, _share(rank, count, chosen), hidden)
        return Move(chosen | again, drawn.sample), after

    def _falls(self, look: Look) -> jax.Array:
        """[B, W]: log u^(1/n), log u^(1/(n-1)), ...: how far log(1 - alpha) falls from hit to hit."""
        index = jnp.broadcast_to(jnp.arange(look.tokens.shape[1]), look.tokens.shape)
        left = jnp.maximum(look.masked.sum(1)[:, None] - index, 1)
        return -random_scores(look.stream(1), index) / left


def _share(rank: jax.Array, count: jax.Array, where: jax.Array) -> jax.Array:
    """rank / count where ``where`` and there is a count, else 0."""
    found = rank / jnp.maximum(count, 1)[:, None]
    return jnp.where(where & (count > 0)[:, None], found, 0.0).astype(jnp.float32)
