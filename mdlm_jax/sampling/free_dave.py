"""FreeDave (arXiv 2510.00294): greedy decoding, exactly, in fewer forwards, by drafts that the next forward checks.

No other model drafts: a forward that says what comes next also says what would come after it if nothing changed. A
forward is of one row more for each draft, see `sampling.copies`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling import copies
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, ranks, static, take_best
from mdlm_jax.sampling.low_confidence import LowConfidence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drafts:
    """``windows`` [B, K, W] int32, what K drafts show; ``made`` [B] int32, steps that one-by-one decoding has made."""

    windows: jax.Array
    made: jax.Array


@decoder
class FreeDave(Decoder):
    """`LowConfidence` at temperature 0, token for token, where every forward makes as many of its steps as it can.

    Let n_s be its quota at step s, and x the canvas after step s. From the law at x, draft k reveals the
    n_{s+1} + ... + n_{s+k} surest masks of the next canvas x_{s+1}. The next forward runs on that and its K drafts, and
    tells what each becomes by one greedy step. Beginning with the canvas, as long as what one becomes is draft k + 1,
    it is followed there; what the last one becomes is written. So 1 to K + 1 steps a forward.

    A draft equals another's next canvas only if it has as many masks, hence the next one alone is compared. Equality
    with `LowConfidence` is exact but for rounding: a forward of more rows may sum in another order, which chooses among
    positions that are all alike to the network, such as masks that see nothing but masks.

    Attributes:
      mask_id: the mask token.
      drafts: K; 0 is `LowConfidence` itself.
      temperature: 0, since drafts tell what is likeliest, not what would be drawn.
      head_budget: logits alive at once; it changes memory, not results.
    """

    mask_id: int = static()
    drafts: int = static(4)
    temperature: float = static(0.0)
    head_budget: int = static(1 << 22)

    steady = True

    def __post_init__(self):
        check("drafts", self.drafts, lambda n: n >= 0 and n == int(n), "must be a whole number, 0 or more")
        check("temperature", self.temperature, lambda t: t == 0, "must be 0: it decodes greedily")

    @property
    def copies(self) -> int:
        return self.drafts + 1

    def check(self, call: Plan) -> None:
        copies.check_whole(self, call)

    def one_by_one(self) -> Decoder:
        return self._greedy

    def law(self):
        return self._greedy.law()

    @property
    def _greedy(self) -> LowConfidence:
        return LowConfidence(self.mask_id, head_budget=self.head_budget)

    def begin(self, look: Look, hidden) -> Drafts:
        """Nothing is drafted yet: copies of the canvas."""
        del hidden
        rows, width = look.tokens.shape
        return Drafts(jnp.broadcast_to(look.tokens[:, None], (rows, self.drafts, width)), jnp.zeros_like(look.step))

    def inputs(self, call: Call, look: Look, state: Drafts) -> Call:
        return copies.asked(call, look, _shown(look, state))

    def update(self, prediction: Prediction, look: Look, state: Drafts) -> tuple[Move, Drafts]:
        shown = _shown(look, state)
        number = self.copies
        each = copies.looked_at(look, shown, step=state.made[:, None] + jnp.arange(number))
        drawn = self.draw(prediction, each, ("sample", "sample_log_prob"), where=each.masked)
        write = take_best(drawn.sample_log_prob, each.masked, each.due)
        become = copies.of_rows(jnp.where(write, drawn.sample, each.tokens), number)
        follows = (become[:, :-1] == shown[:, 1:]).all(-1)
        last = jnp.cumprod(follows, axis=1).sum(1)
        score, sample, masked, due, before = (copies.chosen(copies.of_rows(x, number), last) for x in (
            drawn.sample_log_prob, drawn.sample, each.masked, each.due, each.tokens))
        made = state.made + last + 1
        rank = ranks(score, masked)[:, None]
        count = due[:, None] + jnp.cumsum(_quotas(look, made, self.drafts), axis=1)
        drafted = jnp.where(masked[:, None] & (rank < count[..., None]), sample[:, None], before[:, None])
        after = copies.chosen(become, last)
        return Move(after != look.tokens, after), Drafts(drafted.astype(jnp.int32), made)


def _shown(look: Look, state: Drafts) -> jax.Array:
    """[B, K + 1, W]: the canvas and its drafts."""
    return jnp.concatenate([look.tokens[:, None], state.windows], axis=1)


def _quotas(look: Look, made: jax.Array, number: int) -> jax.Array:
    """[B, number] int32: `Look.quota` of the steps from ``made`` on."""
    step = made[:, None] + jnp.arange(number)
    return dataclasses.replace(look, step=step, first_masks=look.first_masks[:, None]).quota
