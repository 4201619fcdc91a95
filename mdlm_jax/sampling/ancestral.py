"""Ancestral sampling: the exact reverse chain on a grid of times, for any mixing and for a learned schedule."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws, genmd4
from mdlm_jax.core.guidance import guide, unconditional_tokens
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.sampling.canvas import Canvas


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Time runs from 1 to 0 in ``steps`` equal steps; the last one denoises whatever is left.

    Each step is `Process.reverse_step`: first whether a position moves, then where to, so the law does not depend on
    the floating-point resolution of a V-long draw, however many steps there are (spec: categorical draws, R1).

    Attributes:
      process: the noise the denoiser was trained with.
      temperature, top_p, top_k: of the draw from the denoiser; 1, 1 and 0 are the model's own law.
      guidance: strength w of unsupervised guidance: the denoiser's law is p(x | prompt)^(1 + w) / p(x | masks)^w, the
        second from the same canvas with its prompt masked (SMDM, arXiv 2410.18514). 0: none, and one forward a step.
      head_budget: logits alive at once; it changes memory, not results.
    """

    process: Process
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    guidance: float = 0.0
    head_budget: int = 1 << 22

    def __post_init__(self):
        if self.guidance and (self.process.mask_id is None or self.process.mixing == 1):
            raise ValueError(f"guidance={self.guidance}: masks the prompt, and the process has no masks; leave it at 0")

    def init(self, canvas: Canvas, key: jax.Array) -> Canvas:
        """Fills the editable positions with pure noise."""
        noise = self.process.prior(_keys(key, canvas.row_ids, 0), canvas.tokens.shape[1])
        tokens = jnp.where(canvas.editable, noise, canvas.tokens)
        return dataclasses.replace(canvas, tokens=tokens)

    def time(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """The time before step ``step`` (0-based) of ``steps``: 1 - step / steps."""
        return 1.0 - step.astype(jnp.float32) / steps.astype(jnp.float32)

    @property
    def forwards(self) -> int:
        """Network calls a step."""
        return 2 if self.guidance else 1

    def predict(self, denoise: Callable, params, canvas: Canvas, time: jax.Array) -> Prediction:
        """The denoiser's prediction for the canvas, guided.

        The head is linear, so hidden states are guided in the place of logits: (1 + w) h_c - w h_u gives the logits
        (1 + w) l_c - w l_u, and no [B, L, V] array exists.
        """
        prediction = denoise(params, canvas.tokens, time)
        if not self.guidance:
            return prediction
        blind = unconditional_tokens(canvas.tokens, ~canvas.editable, self.process.mask_id)
        unconditional = denoise(params, blind, time)
        return dataclasses.replace(prediction, hidden=guide(prediction.hidden, unconditional.hidden, self.guidance))

    def update(self, canvas: Canvas, prediction, step: jax.Array, steps: jax.Array, key: jax.Array) -> Canvas:
        """One step: the canvas at time(step + 1) from the one at time(step)."""
        rows = canvas.row_ids.shape
        t = jnp.broadcast_to(self.time(step, steps), rows)
        s = jnp.broadcast_to(self.time(step + 1, steps), rows)
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), step)
        drawn = draws.draw(
            prediction,
            _keys(step_key, canvas.row_ids, 0),
            suppress=self.process.mask_id,
            current=None if self.process.masked_only else canvas.tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            chunk=chunk_length(rows[0], prediction.num_columns, self.head_budget),
        )
        keys = _keys(step_key, canvas.row_ids, 1)
        tokens = self._move(keys, canvas, prediction, drawn, s, t, last=step + 1 == steps)
        return dataclasses.replace(canvas, tokens=tokens)

    def _move(self, keys, canvas, prediction, drawn, s, t, last) -> jax.Array:
        """[B, L]: the tokens at time s, or clean ones in the ``last`` step."""
        move = {
            "sample": drawn.sample,
            "current_log_prob": drawn.current_log_prob,
            "noise_mask": canvas.editable,
        }
        return jax.lax.cond(
            last,
            lambda: self.process.final_step(keys, canvas.tokens, t, **move),
            lambda: self.process.reverse_step(keys, canvas.tokens, s, t, **move),
        )


@dataclasses.dataclass(frozen=True)
class LearnedScheduleAncestral(Ancestral):
    """The chain of GenMD4 (`core.genmd4`): each token id has a schedule of its own, learned with the network.

    The denoiser must give a `genmd4.ScheduledPrediction`, which carries the powers. Time runs on the same grid; the
    last step goes to s = 0, where whatever is masked takes its draw. That is the reconstruction law of the held-out
    bound, here from 1 / steps instead of time_min.
    """

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: a learned schedule is for the masked process, mixing=0")

    def _move(self, keys, canvas, prediction, drawn, s, t, last) -> jax.Array:
        del last  # s is 0 then
        return genmd4.reverse_step(
            keys,
            prediction.powers,
            canvas.tokens,
            s,
            t,
            sample=drawn.sample,
            mask_id=self.process.mask_id,
            noise_mask=canvas.editable,
        )


def _keys(key: jax.Array, row_ids: jax.Array, stream: int) -> jax.Array:
    """[B] keys from (key, stream, row id)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, stream), row_ids)
