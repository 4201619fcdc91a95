"""Path planning (P2, arXiv 2502.03540): a plan says which positions show a token, drawn ones and present ones alike."""

import jax
import jax.numpy as jnp

from mdlm_jax.core.process import Process, safe_ratio
from mdlm_jax.sampling.decoder import Decoder, Look, Move, check, decoder, lots, random_scores, static, take_best

PLANNERS = ("self", "uniform")
KAPPAS = ("binomial", "even")


@decoder
class P2(Decoder):
    """Every step scores all positions and shows the kappa best: masks among them take a draw, other tokens are masked.

    Attributes:
      process: the masked process the network was trained with.
      planner: self: a mask has score eta p(its draw), a token p(token), each from the network's own row there; what a
        row says of a token that the network sees is used as it is, not replaced by 1, so the network must know (one
        trained on masks alone usually repeats the token). uniform: tokens stay, and the masks shown are chosen at
        random: ancestral sampling.
      eta: of the self planner; above 1 more tokens are exchanged for masks, at 0 none.
      kappa: how many positions show a token after a step. binomial: as in the reverse process, each mask at random with
        (alpha_s - alpha_t) / (1 - alpha_t), so that with the uniform planner the law is that of `Ancestral`. even: the
        block's masks are shared evenly among its steps, the remainder first. All at the last step, either way.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the model's own law. Scores are of the untempered one.
      head_budget: logits alive at once; it changes memory, not results.
    """

    process: Process = static()
    planner: str = static("self")
    eta: float = 1.0
    kappa: str = static("binomial")
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    def __post_init__(self):
        self._check_law()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: path planning is for the masked process, mixing=0")
        for name, choices in (("planner", PLANNERS), ("kappa", KAPPAS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check("eta", self.eta, lambda eta: 0 <= eta < float("inf"), "must not be negative")
        if self.planner == "uniform":
            check("eta", self.eta, lambda eta: eta == 1, "the uniform planner has none; leave it out")

    @property
    def mask_id(self) -> int:
        return self.process.mask_id

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
        wants = ("sample", "sample_log_prob")
        drawn = self.draw(prediction, look, wants, where=look.editable, current=look.tokens)
        tokens = look.editable & ~look.masked
        # Far below any probability: at eta = 0 masks come after all tokens, and still in their own order.
        score = drawn.sample_log_prob + jnp.log(jnp.maximum(self.eta, 1e-30))
        score = jnp.where(look.masked, score, drawn.current_log_prob)
        shown = take_best(score, look.editable, tokens.sum(1) + more)
        return Move(shown & look.masked, drawn.sample, remask=tokens & ~shown), None

    def _more(self, look: Look) -> jax.Array:
        """[B] int32: by how many tokens there will be more."""
        if self.kappa == "even":
            more = look.quota
        else:
            schedule = self.process.schedule
            chance = safe_ratio(schedule.drop(look.s, look.t), schedule.complement(look.t))
            more = (look.masked & lots(look.stream(1), look.place, chance[:, None])).sum(1, dtype=jnp.int32)
        return jnp.where(look.last, look.masked.sum(1, dtype=jnp.int32), more)
