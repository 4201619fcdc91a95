"""LLaDA's decoder (arXiv 2502.09992): every step reveals the positions the network is surest of, or random ones."""

from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.sampling.confidence import ByConfidence, opened
from mdlm_jax.sampling.decoder import Look, Move, decoder, random_scores, static, take_best

REMASKING = ("low_confidence", "random", "top")


@decoder
class LowConfidence(ByConfidence):
    """Of the masks in the block, those due are revealed, by the probability of what was drawn there.

    A block's masks are spread evenly over its steps, the remainder first (`Look.quota`). LLaDA's logits_eos_inf is the
    call's ``bias`` with -inf at the end token.

    Attributes:
      remasking: low_confidence: by the probability of the draw; top: of the likeliest token, whatever was drawn, so
        that positions depend on the canvas alone; random: uniformly chosen positions.
      defer: ids that are revealed last (LLaDA's confidence_eos_eot_inf, 126081 and 126348 there): they leave the
        softmax after the draw, so that others share their probability and a position that drew one has none.
      reference: as LLaDA's code has it: the network may predict the mask itself, which uses up the quota and can stay
        in the result, and masks before the block compete as well. For comparisons.
    """

    remasking: str = static("low_confidence")
    defer: tuple[int, ...] = static(())
    reference: bool = static(False)

    def __post_init__(self):
        super().__post_init__()
        if self.remasking not in REMASKING:
            raise ValueError(f"remasking={self.remasking!r}: choose one of {', '.join(REMASKING)}")
        if self.defer and self.remasking != "low_confidence":
            raise ValueError(f"defer={self.defer}: goes by the draw's probability, and remasking={self.remasking!r} "
                             "does not read it; leave it out")

    @property
    def reach(self) -> int:
        return 0 if self.reference else 1

    @property
    def partial(self) -> bool:
        return self.reference

    @property
    def scorable(self) -> bool:
        return self.remasking == "top"

    @property
    def foresees(self) -> bool:
        return self.remasking == "random"

    def law(self) -> dict[str, Any]:
        return {**super().law(), "unsure": self.defer}

    def foreseen(self, look: Look) -> tuple[jax.Array, jax.Array]:
        return self.lots(look), look.quota if self.reference else look.due

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        if self.foresees:
            lots, count = self.foreseen(look)
            write = opened(Move(take_best(lots, look.masked, count), look.tokens), look).write
            drawn = self.draw(prediction, look, ("sample",), where=write, may_draw_mask=self.reference)
            return Move(write, drawn.sample), None
        count = look.quota if self.reference else look.due
        wanted = "top_log_prob" if self.remasking == "top" else "sample_log_prob"
        drawn = self.draw(prediction, look, ("sample", wanted), where=look.masked, may_draw_mask=self.reference)
        write = take_best(getattr(drawn, wanted), look.masked, count)
        return opened(Move(write, drawn.sample, log_prob=drawn.law_log_prob), look), None

    def lots(self, look: Look) -> jax.Array:
        """[B, W] float32: what random remasking goes by."""
        return random_scores(look.stream(2), look.place)

    def done(self, look: Look, state) -> jax.Array:
        """The reference runs all its steps, and may leave masks."""
        return jnp.zeros(look.step.shape, bool) if self.reference else super().done(look, state)
