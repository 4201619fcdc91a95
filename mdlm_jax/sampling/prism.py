"""PRISM (arXiv 2510.01384): a head on the network's hidden states says which tokens are right; the worst are redone."""

from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.models.quality import QualityHead, check_kind
from mdlm_jax.sampling.decoder import (
    Decoder,
    Look,
    Move,
    Plan,
    check,
    decoder,
    random_scores,
    static,
    take_best,
)

ORDERS = ("random", "confidence")


@decoder
class PRISM(Decoder):
    """Every step reveals what is due and masks again those tokens that the head thinks the least of, from one forward.

    The block's masks are shared evenly among its steps, the remainder first, and each step also reveals what the step
    before took back; the last takes nothing back, so no mask is left. Only tokens that the forward saw are judged. How
    many go back and which masks come first is free in the paper; here:

    Attributes:
      quality: the head's weights, with the network's table; of a run of train.objective=prism:1.
      remask: tokens of a row and block that are masked again in a step, where there are as many.
      order: random: the masks revealed are chosen at random. confidence: those whose draw is the likeliest.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the model's own law.
      head_budget: logits alive at once; it changes memory, not results.
    """

    quality: QualityHead | Any = None
    mask_id: int = static(0)
    remask: int = 1
    order: str = static("random")
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    reach = 0

    def __post_init__(self):
        self._check_law()
        check_kind(self.quality, "prism", type(self).__name__)
        check("remask", self.remask, lambda n: n >= 0 and n == int(n), "must be a whole number of tokens, 0 for none")
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}: choose one of {', '.join(ORDERS)}")

    def check(self, call: Plan) -> None:
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: the head reads one network's hidden states, and guidance has "
                             "two; leave it at 0")

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        masked = look.masked & look.inside
        wants = ("sample",) if self.order == "random" else ("sample", "sample_log_prob")
        drawn = self.draw(prediction, look, wants, where=masked)
        score = random_scores(look.stream(1), look.place) if self.order == "random" else drawn.sample_log_prob
        right = self.quality.logits(look.tokens, prediction.hidden, attention_mask=look.segment, positions=look.place)
        worst = take_best(-right, look.editable & look.inside & ~look.masked,
                          jnp.where(look.last, 0, self.remask).astype(jnp.int32))
        return Move(take_best(score, masked, look.due), drawn.sample, remask=worst), None

    def done(self, look: Look, state) -> jax.Array:
        """A row without masks may have some again in the next step."""
        del state
        return jnp.zeros(look.step.shape, bool)
