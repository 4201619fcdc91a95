"""Dream's decoder (arXiv 2508.15487), which SMDM's (arXiv 2410.18514) is a case of: numbers of tokens from times."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import categorical
from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import ByConfidence, drawn_law, fraction, opened
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, at_places, check, decoder, lots, static, take_best
from mdlm_jax.sampling.margin import margin

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold")
_WANTS = {
    "maskgit_plus": ("sample_log_prob",),
    "topk_margin": ("top_log_prob", "second_log_prob"),
    "entropy": ("entropy",),
    "confidence_threshold": ("sample_log_prob",),
}


@decoder
class Dream(ByConfidence):
    """Of n masks, int(n (1 - s/t)) are revealed in the step from time t to s, all of them in the last.

    Times fall from 1 to ``eps`` in equal steps (1e-3 for Dream, 1e-5 for SMDM). Everything is measured on the law that
    tokens are drawn from: logits / temperature, then the nucleus, then the top k; also at temperature 0, where they are
    not divided. The published code computes it in bfloat16 and cuts no ties; here it is float32, and the top k are k.

    Attributes:
      algorithm: origin: every mask is revealed with probability 1 - s/t of its own. maskgit_plus: the surest, by the
        probability of the draw. topk_margin: by p_(1) - p_(2). entropy: by the least entropy. confidence_threshold
        (Fast-dLLM, without cache): at most the tokens that are due (`Look.due`), of which all but the surest must have
        the probability ``threshold``; takes further steps until all are written. For more at once: `Threshold`.
      alg_temp: 0, or positive: positions are drawn without replacement from softmax(confidence / alg_temp).
      threshold: of confidence_threshold.
      eps: where times end; of its own grid, so it does not go with a call's.
    """

    algorithm: str = static("entropy")
    alg_temp: float = 0.0
    threshold: float | None = None
    eps: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={self.algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
        check("alg_temp", self.alg_temp, lambda t: 0 <= t < float("inf"), "must be 0 (the surest) or positive")
        check("alg_temp", self.alg_temp, lambda t: t == 0 or self.algorithm in ALGORITHMS[1:4],
              f"is not read by algorithm={self.algorithm!r}; leave it out")
        check("eps", self.eps, lambda e: 0 < e < 1, "must lie between 0 and 1")
        check("eps", self.eps, lambda e: e == Dream.eps or self.reads_grid,
              f"algorithm={self.algorithm!r} does not go by times; leave it out")
        if (self.threshold is None) == (self.algorithm == "confidence_threshold"):
            raise ValueError(f"threshold={self.threshold}: belongs to algorithm='confidence_threshold', and this is "
                             f"{self.algorithm!r}; give both or neither")
        fraction("threshold", self.threshold)

    @property
    def reads_grid(self) -> bool:
        return self.algorithm != "confidence_threshold"

    @property
    def scorable(self) -> bool:
        """Whether positions go by the law alone."""
        return self.algorithm in ("topk_margin", "entropy") and self.alg_temp == 0

    def one_by_one(self) -> Decoder:
        """There is none: int(n (1 - s/t)) is not one in every step, whatever the number of steps."""
        raise ValueError("Dream: goes by times, which do not give one token a step; give a reference, such as Margin "
                         "or EntropyBound with gamma=0")

    def check(self, call: Plan) -> None:
        super().check(call)
        if call.grid:
            check("eps", self.eps, lambda e: e == Dream.eps, "ends Dream's own times; leave it out beside a grid")

    def grid(self, steps: int) -> np.ndarray:
        """1, ..., and 0 in place of the last, ``eps``: the last step reveals everything."""
        return np.append(np.linspace(1.0, self.eps, steps + 1)[:-1], 0.0)

    def law(self) -> dict[str, Any]:
        return drawn_law(self)

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        if self.algorithm == "origin":
            write = opened(Move(self.chosen(look), look.tokens), look).write
            drawn = self.draw(prediction, look, ("sample",), where=write)
        else:
            drawn = self.draw(prediction, look, ("sample", *_WANTS[self.algorithm]), where=look.masked)
            write = self.reveal(drawn, look)
        return opened(Move(write, drawn.sample, log_prob=drawn.law_log_prob), look), None

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        confidence = self._confidence(drawn)
        if self.algorithm == "confidence_threshold":
            assert self.threshold is not None  # as the constructor has checked
            offered = take_best(confidence, look.masked, jnp.maximum(look.due, 1))
            return offered & ((confidence >= self.threshold) | take_best(confidence, look.masked, jnp.int32([1])))
        return take_best(self.ranks(confidence, look), look.masked, revealed(look))

    def _confidence(self, drawn: Drawn) -> jax.Array:
        if self.algorithm == "entropy":
            return -drawn.entropy
        return margin(drawn) if self.algorithm == "topk_margin" else jnp.exp(drawn.sample_log_prob)

    def chosen(self, look: Look) -> jax.Array:
        """[B, W] bool: where origin reveals."""
        return look.masked & lots(look.stream(1), look.place, 1.0 - (look.s / look.t)[:, None])

    def ranks(self, confidence: jax.Array, look: Look) -> jax.Array:
        """[B, W]: by what positions are taken: softmax(confidence / alg_temp) without replacement is a Gumbel race."""
        race = at_places(lambda key: categorical.gumbel(key, ()), look.stream(1), look.place)
        return confidence + self.alg_temp * race

    def limit(self, steps: jax.Array, block_length: int) -> jax.Array | int:
        return steps + block_length if self.algorithm == "confidence_threshold" else steps


def revealed(look: Look) -> jax.Array:
    """[B] int32: int(n (1 - s/t)) of n masks."""
    masks = (look.masked & look.inside).sum(1, dtype=jnp.int32)
    return jnp.where(look.last, masks, (masks * (1.0 - look.s / look.t)).astype(jnp.int32))
