"""Ancestral sampling: the exact reverse chain on a grid of times, for any mixing and for a learned schedule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core import genmd4
from mdlm_jax.core.process import Process
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, decoder, static

_WANTED = -1  # stands for the draw while it is decided who takes it


def reverse_tokens(process: Process, look: Look, sample: jax.Array,
                   current_log_prob: jax.Array | None = None) -> jax.Array:
    """[B, W]: the tokens at the look's time s, or clean ones in its last step, where ``sample`` are draws from the
    denoiser; arguments as of `Process.reverse_step`."""
    move: dict[str, Any] = {"sample": sample, "current_log_prob": current_log_prob, "noise_mask": look.editable}
    keys = look.stream(1)
    final = process.final_step(keys, look.tokens, look.t, **move)
    ahead = process.reverse_step(keys, look.tokens, look.s, look.t, **move)
    return jnp.where(look.last[:, None], final, ahead)


@decoder
class Ancestral(Decoder):
    """Time runs from 1 to 0 on the call's grid; the last step denoises whatever is left.

    Each step is `Process.reverse_step`: first whether a position moves, then where to, so the law does not depend on
    the floating-point resolution of a V-long draw, however many steps there are (spec: categorical draws, R1). With a
    masked process the head is applied to the positions that move, and to no others.

    Attributes:
      process: the noise the denoiser was trained with.
      temperature, top_p, top_k: of the draw from the denoiser; 1, 1 and 0 are the model's own law.
      reuse: leaves the forward out where no token has changed since the last one; for networks that do not read the
        time. The same samples from N (1 - (1 - 1/N)^(B L)) forwards on average (arXiv 2409.02908), masked processes.
      head_budget: logits alive at once; it changes memory, not results.
    """

    process: Process = static()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    reuse: bool = static(False)
    head_budget: int = static(1 << 22)

    reads_grid = True

    def __post_init__(self):
        self._check_law()
        if self.reuse and not self.process.masked_only:
            raise ValueError(f"reuse: needs a masked process, and mixing={self.process.mixing}; leave it out")

    @property
    def mask_id(self) -> int | Any:
        return None if self.process.mixing == 1 else self.process.mask_id

    @property
    def suppressed(self) -> int | None:
        return self.process.mask_id

    @property
    def reuses(self) -> bool:
        return self.reuse

    def init(self, canvas, keys: jax.Array):
        """Fills the editable positions with pure noise."""
        noise = self.process.prior(keys, canvas.shape[1])
        noise = jnp.take_along_axis(noise, canvas.place(), axis=1)
        return dataclasses.replace(canvas, tokens=jnp.where(canvas.editable, noise, canvas.tokens))

    def check(self, call: Plan) -> None:
        self._check_one_schedule(call)

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        """One step: the canvas at time s from the one at time t."""
        del state
        if self.process.masked_only:
            plan = self._move(prediction, look, jnp.full_like(look.tokens, _WANTED), None)
            where = plan == _WANTED
            drawn = self.draw(prediction, look, ("sample",), where=where)
            tokens = jnp.where(where, drawn.sample, plan)
        else:
            drawn = self.draw(prediction, look, ("sample",), current=look.tokens)
            tokens = self._move(prediction, look, drawn.sample, drawn.current_log_prob)
        return Move(look.editable, tokens), None

    def _move(self, prediction, look: Look, sample, current_log_prob) -> jax.Array:
        """[B, W]: the tokens at time s, or clean ones in the last step."""
        del prediction
        return reverse_tokens(self.process, look, sample, current_log_prob)

    def done(self, look: Look, state) -> jax.Array:
        del state
        return ~look.masked.any(1) if self.process.masked_only else jnp.zeros(look.step.shape, bool)


@decoder
class LearnedScheduleAncestral(Ancestral):
    """The chain of GenMD4 (`core.genmd4`): each token id has a schedule of its own, learned with the network.

    The denoiser must give a `genmd4.ScheduledPrediction`, which carries the powers. Time runs on the same grid; the
    last step goes to s = 0, where whatever is masked takes its draw. That is the reconstruction law of the held-out
    bound, here from 1 / steps instead of time_min.
    """

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: a learned schedule needs the masked process, mixing=0")

    def check(self, call: Plan) -> None:
        del call

    def update(self, prediction, look: Look, state) -> tuple[Move, None]:
        del state
        if not hasattr(prediction, "powers"):
            raise ValueError(f"{type(self).__name__}: reads the powers of a learned schedule, and this prediction is a "
                             f"{type(prediction).__name__}; use Ancestral")
        drawn = self.draw(prediction, look, ("sample",), where=look.masked)
        tokens = genmd4.reverse_step(
            look.stream(1),
            prediction.powers,
            look.tokens,
            look.s,
            look.t,
            sample=drawn.sample,
            mask_id=self.process.mask_id,
            noise_mask=look.editable,
        )
        return Move(look.editable, tokens), None
