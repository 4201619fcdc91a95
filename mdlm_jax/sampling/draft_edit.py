"""Draft and edit on a schedule, LLaDA-XDLM's decoder (arXiv 2602.01362): tokens that were written are written again."""

import jax
import jax.numpy as jnp

from mdlm_jax.sampling.decoder import Decoder, Look, Move, check, decoder, static, take_best


@decoder
class DraftEdit(Decoder):
    """Every step reveals masks and, from the same forward, replaces tokens that the network would now write otherwise.

    With n masks in the block, S steps, k the ``mixing`` and x the canvas, step i = 0, 1, ... draws v_l ~ p_l and takes

        drafts   q_i = n // S + [i < n mod S] masks, by the largest p(v)                            (mask to token)
        edits    r_i + left over of the written l with v_l != x_l and p(v_l) >= p(x_l), likewise    (token to token)
                 r_i = R_i - R_(i-1),   R_0 = 0,   R_i = floor(k / (1 - k) sum_(j <= i) q_j)

    What is not used of r_i is left over for the next step of the block. So a block sees about n k / (1 - k) edits,
    however many steps it is given. For networks trained with hybrid noise, which have seen wrong tokens.

    Attributes:
      mask_id: the mask token.
      mixing: the network's uniform share of the noise, in [0, 1); 0 edits nothing. LLaDA-XDLM: 0.1.
      temperature: of the draw; 0 takes the argmax. ``top_p``, ``top_k`` as in `core.draws`.
      reference: as LLaDA-XDLM's code has it: everything before the block's end is edited as well, and the network may
        predict the mask itself. For comparisons. Even so only what the canvas calls editable changes: who wants their
        prompt edited, as that code does, must declare it editable and say where blocks begin, ``canvas(tokens,
        all_true, start=len(prompt))``. A prompt that is not declared so stays.
    """

    mask_id: int = static()
    mixing: float = 0.1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = static(0)
    reference: bool = static(False)
    head_budget: int = static(1 << 22)

    def __post_init__(self):
        self._check_law()
        check("mixing", self.mixing, lambda k: 0 <= k < 1, "must lie in [0, 1): edits for a draft are k / (1 - k)")

    @property
    def reach(self) -> int:
        return 0 if self.reference else 1

    @property
    def partial(self) -> bool:
        return self.reference

    def begin(self, look: Look, hidden) -> jax.Array:
        """The state: [B] int32, edits left over."""
        del hidden
        return jnp.zeros_like(look.step)

    def update(self, prediction, look: Look, state: jax.Array) -> tuple[Move, jax.Array]:
        drawn = self.draw(
            prediction, look, ("sample", "sample_log_prob"), where=look.editable, current=look.tokens,
            may_draw_mask=self.reference,
        )
        score = drawn.sample_log_prob
        better = (drawn.sample != look.tokens) & (score >= drawn.current_log_prob)
        candidates = look.editable & (look.tokens != self.mask_id) & better
        left = state + self._edits(look, look.step) - self._edits(look, look.step - 1)
        edits = take_best(score, candidates, left)
        drafts = take_best(score, look.masked, look.quota)
        return Move(drafts | edits, drawn.sample), left - edits.sum(1, dtype=jnp.int32)

    def _edits(self, look: Look, step: jax.Array) -> jax.Array:
        """R_i of ``step`` [B], [B] int32; truncated in float32, as theirs."""
        each, rest = look.first_masks // look.steps, look.first_masks % look.steps
        drafts = (each * (step + 1) + jnp.minimum(step + 1, rest)).astype(jnp.float32)
        ratio = jnp.float32(self.mixing) / (1 - jnp.float32(self.mixing))
        return jnp.where(step > 0, jnp.floor(ratio * drafts), 0).astype(jnp.int32)

    def done(self, look: Look, state: jax.Array) -> jax.Array:
        """When the last mask is gone and no edit is left over; the reference runs all its steps."""
        return jnp.zeros(look.step.shape, bool) if self.reference else super().done(look, state) & (state == 0)
