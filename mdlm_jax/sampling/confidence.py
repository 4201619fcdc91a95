"""What the decoders that go by confidence have in common."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws
from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, static


@decoder
class ByConfidence(Decoder):
    """Each step draws at the masks of the block and reveals some of the draws; a subclass says which (`reveal`).

    In a cached block of a shifted network (Dream) no window scores the block's first token. The forward over the whole
    canvas with which the block begins then writes that token alone (Fast-dLLM for Dream, arXiv 2505.22618; there always
    the likeliest, here the draw).

    Attributes:
      mask_id: the mask token.
      temperature: of the draw; 0 takes the argmax. ``top_p``, ``top_k`` as in `core.draws`.
      head_budget: logits alive at once; it changes memory, not results.
    """

    mask_id: int = static()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    opens = True
    reads_masks = True

    @property
    def wants(self) -> tuple[str, ...]:
        """Beside the sample: what `reveal` reads of `core.draws.Drawn`."""
        return ("top_log_prob",)

    def __post_init__(self):
        self._check_law()

    def update(self, prediction, look: Look, state) -> tuple[Move, Any]:
        drawn = self.drawn(prediction, look)
        write = self.reveal(drawn, look)
        return opened(Move(write, drawn.sample, log_prob=drawn.law_log_prob), look), state

    def drawn(self, prediction, look: Look, **how) -> Drawn:
        """What `reveal` reads, at the candidates. ``how``: further arguments of `Decoder.draw`."""
        return self.draw(prediction, look, ("sample", *self.wants), where=self.candidates(look), **how)

    def candidates(self, look: Look) -> jax.Array:
        """[B, W] bool: the masks that may be revealed, the only ones where anything is drawn."""
        return look.masked

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        """[B, W] bool: the masks to write the draws at."""
        raise NotImplementedError

    def check(self, call: Plan) -> None:
        if self.reads_steps and call.shifted and call.cache != "none" and call.steps < min(2, call.block_length):
            raise ValueError(f"steps: {call.steps} a block; with cache={call.cache!r} a shifted network needs 2 or "
                             "more, since the first writes one token alone")


def opened(move: Move, look: Look) -> Move:
    """The move, or only its part at the block's first token where that must be written now and is a mask."""
    if not look.opening:
        return move
    first = look.masked & look.inside & (jnp.cumsum(look.inside, axis=1) == 1)
    return dataclasses.replace(move, write=jnp.where(first.any(1, keepdims=True), first, move.write))


def drawn_law(rule) -> dict[str, Any]:
    """`Decoder.law` for rules that measure confidence on the law which tokens are drawn from, also at temperature 0:
    logits / temperature (there undivided), then the nucleus, then the top k."""
    sharpen = functools.partial(
        draws.law, temperature=rule.temperature, top_p=rule.top_p, top_k=rule.top_k, nucleus_first=True
    )
    whether = rule.temperature > 0
    return {
        "sharpen": sharpen,
        "temperature": whether.astype(jnp.float32) if isinstance(whether, jax.Array) else float(whether),
    }


def fraction(name: str, value) -> None:
    """Refuses a known number outside [0, 1]."""
    check(name, value, lambda x: 0 <= x <= 1, "must lie in [0, 1], as a probability does")
