"""Path planning (P2, arXiv 2502.03540): a plan says which positions show a token, drawn ones and present ones alike."""

from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.process import Process, safe_ratio
from mdlm_jax.models.quality import QualityHead, check_kind
from mdlm_jax.sampling.decoder import Decoder, Look, Move, check, decoder, lots, random_scores, static, take_best

PLANNERS = ("self", "uniform", "trained")
KAPPAS = ("binomial", "even")


@decoder
class P2(Decoder):
    """Every step scores all positions and shows the kappa best: masks among them take a draw, other tokens are masked.

    Attributes:
      process: the masked process the network was trained with.
      planner: self: a mask has score eta p(its draw), a token p(token), each from the network's own row there; what a
        row says of a token that the network sees is used as it is, not replaced by 1, so the network must know (one
        trained on masks alone usually repeats the token). uniform: tokens stay, and the masks shown are chosen at
        random: ancestral sampling. trained: ``quality`` reads the row with a draw at every mask, those behind the block
        too, and p is its probability that a token is right, for draws and tokens alike.
      eta: of the self and the trained planner; above 1 more tokens are exchanged for masks, at 0 none.
      kappa: how many positions show a token after a step. binomial: as in the reverse process, each mask at random with
        (alpha_s - alpha_t) / (1 - alpha_t), so that with the uniform planner the law is that of `Ancestral`. even: the
        block's masks are shared evenly among its steps, the remainder first. All at the last step, either way.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the model's own law. Scores are of the untempered one.
      head_budget: logits alive at once; it changes memory, not results.
      quality: the trained planner's weights, with the network's table; of a run of train.objective=planner:2.
    """

    process: Process = static()
    planner: str = static("self")
    eta: float = 1.0
    kappa: str = static("binomial")
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)
    quality: QualityHead | Any = None

    def __post_init__(self):
        self._check_law()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: path planning needs the masked process, mixing=0")
        for name, choices in (("planner", PLANNERS), ("kappa", KAPPAS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check("eta", self.eta, lambda eta: 0 <= eta < float("inf"), "must not be negative")
        if self.planner == "trained":
            check_kind(self.quality, "planner", type(self).__name__)
        if self.planner == "uniform":
            check("eta", self.eta, lambda eta: eta == 1, "the uniform planner has none; leave it out")

    @property
    def mask_id(self) -> int | Any:
        return self.process.mask_id

    @property
    def reach(self) -> int:
        return 0 if self.planner == "trained" else 1

    @property
    def reads_grid(self) -> bool:
        return self.kappa == "binomial"

    def check(self, call) -> None:
        if self.kappa == "binomial":
            self._check_one_schedule(call)

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        more = self._more(look)
        if self.planner == "uniform":
            shown = take_best(random_scores(look.stream(2), look.place), look.masked, more)
            return Move(shown, self.draw(prediction, look, ("sample",), where=shown).sample), None
        here = look.editable & look.inside
        masked, tokens = here & look.masked, here & ~look.masked
        drawn, log_p = self._judged(prediction, look)
        # Far below any probability: at eta = 0 masks come after all tokens, and still in their own order.
        score = jnp.where(masked, log_p + jnp.log(jnp.maximum(self.eta, 1e-30)), log_p)
        shown = take_best(score, here, tokens.sum(1) + more)
        return Move(shown & masked, drawn, remask=tokens & ~shown), None

    def _judged(self, prediction, look: Look) -> tuple[jax.Array, jax.Array]:
        """[B, W] each: draws, and log p of the draw at a mask, of the token elsewhere."""
        if self.planner == "self":
            wants = ("sample", "sample_log_prob")
            drawn = self.draw(prediction, look, wants, where=look.editable, current=look.tokens)
            return drawn.sample, jnp.where(look.masked, drawn.sample_log_prob, drawn.current_log_prob)
        empty = look.tokens == self.mask_id
        sample = self.draw(prediction, look, ("sample",), where=empty).sample
        full = jnp.where(empty, sample, look.tokens)
        log_odds = self.quality.logits(full, attention_mask=look.segment, positions=look.place)
        return sample, jax.nn.log_sigmoid(log_odds)

    def _more(self, look: Look) -> jax.Array:
        """[B] int32: by how many tokens there will be more."""
        masked = look.masked & look.inside
        if self.kappa == "even":
            more = look.quota
        else:
            schedule = self.process.schedule
            chance = safe_ratio(schedule.drop(look.s, look.t), schedule.complement(look.t))
            more = (masked & lots(look.stream(1), look.place, chance[:, None])).sum(1, dtype=jnp.int32)
        return jnp.where(look.last, masked.sum(1, dtype=jnp.int32), more)
