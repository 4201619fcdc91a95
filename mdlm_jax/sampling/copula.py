"""Discrete copula diffusion (arXiv 2410.01949): an autoregressive twin joins what a masked network says of every mask.

All masks of a step are drawn from left to right from

    p(x_i) ~ p_twin(x_i | x_<i) [p(x_i | canvas) / p(x_i | canvas up to i)]^a

where the last factor is the masked network itself under a causal mask (`models.twin.LeftReading`): what it knows from
the left, which the twin knows better, is taken out. Nothing is trained.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models.denoise import Call
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling import left_to_right
from mdlm_jax.sampling.ancestral import reverse_tokens
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, static, take_best

KEEPS = ("random", "prefix")
LEAST = 1e-16  # probabilities of the masked network count as no less


@decoder
class Copula(Decoder):
    """Every step draws all masks jointly with the help of an autoregressive model of the same tokenizer, ``twin``, and
    keeps some of the draws.

    The first token of a row is drawn from the masked network's marginal alone, as in the paper, and probabilities are
    clipped at 1e-16. The forwards that are counted are the masked network's own; each step also costs its causal
    forward, one of the twin over the row, and one of the twin over the stretch that is drawn, a token at a time.

    Attributes:
      process: the noise the masked network was trained with.
      twin: the autoregressive network. causal: the masked one, to be read from left to right.
      keeps: random: each draw with the probability that the process reveals it in this step. prefix: the first masks of
        the block, as many as are due so that they are shared evenly by the steps; only these are drawn, and rows can be
        scored exactly. With one step both are the same.
      exponent: a, on the odds of what the masked network knows from the right; 0: the twin alone, but for the first
        token.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the law above.
    """

    process: Process = static()
    twin: Twin | Any = None
    causal: LeftReading | Any = None
    keeps: str = static("random")
    exponent: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)

    reach = 0
    steady = True
    besides = 3

    def __post_init__(self):
        self._check_law()
        if self.twin is None or self.causal is None:
            raise ValueError("twin=None: Copula needs an autoregressive model of the same tokenizer; load a run of "
                             "train.objective=autoregressive and give it")
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: Copula draws masks alone; use mixing=0")
        if self.keeps not in KEEPS:
            raise ValueError(f"keeps={self.keeps!r}: choose one of {', '.join(KEEPS)}")
        check("exponent", self.exponent, lambda a: 0 <= a < float("inf"), "must be 0 or positive")

    @property
    def mask_id(self) -> int | Any:
        return self.process.mask_id

    @property
    def reads_grid(self) -> bool:
        return self.keeps == "random"

    @property
    def scorable(self) -> bool:
        return self.keeps == "prefix"

    def check(self, call: Plan) -> None:
        if call.contract != "bidirectional":
            raise ValueError(f"contract={call.contract!r}: Copula joins a network that sees both sides with the twin; "
                             "take one of attention bidirectional")
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: the network is also read from left to right, and there is no "
                             "guided reading; leave it at 0")
        if call.pooled:
            raise ValueError("moe.block: positions share a pool of experts, which later ones would choose for earlier "
                             "ones under a causal mask; take another decoder")
        self._check_one_schedule(call)

    def init(self, canvas, keys: jax.Array):
        self.twin.check_length(canvas.shape[1])
        return super().init(canvas, keys)

    def begin(self, look: Look, hidden: jax.Array | None) -> jax.Array:
        """The time that the network was told, [B]: its other reading is told the same."""
        del hidden
        return jnp.zeros_like(look.t)

    def heard(self, prediction: Prediction, call: Call, look: Look, state: jax.Array) -> jax.Array:
        del prediction, look, state
        return call.time

    def update(self, prediction: Prediction, look: Look, state: jax.Array) -> tuple[Move, jax.Array]:
        masked = look.masked & look.inside
        drawn = masked
        if self.keeps == "prefix":
            drawn = take_best(-look.index.astype(jnp.float32), masked, look.due)
        found = self._drawn(prediction, look, drawn, state)
        if self.keeps == "prefix":
            return Move(drawn, found.tokens, log_prob=found.log_prob), state
        tokens = reverse_tokens(self.process, look, jnp.where(masked, found.tokens, look.tokens))
        return Move(look.editable, tokens), state

    def _drawn(self, prediction: Prediction, look: Look, where: jax.Array, time: jax.Array) -> left_to_right.Written:
        """From left to right at ``where`` [B, W]."""
        canvas = look.canvas
        left = self.causal.run(Call(canvas.tokens, time, canvas.segment, canvas.positions, condition=canvas.condition),
                               prediction.num_columns)
        extra = left_to_right.added(prediction, left.head.bias)
        both = dataclasses.replace(prediction, head=dataclasses.replace(prediction.head, bias=left.head.bias))

        def said(twin: Prediction, column: jax.Array) -> Prediction:
            marginal, known = (self._log_probs(one.head, jnp.take_along_axis(one.hidden, column[..., None], axis=1))
                               for one in (both, left))
            own = _columns(self._log_probs(twin.head, twin.hidden), marginal.shape[-1])
            floor = jnp.log(LEAST)
            logits = own + self.exponent * (jnp.maximum(marginal, floor) - jnp.maximum(known, floor))
            first = jnp.take_along_axis(look.place, column, axis=1)[..., None] == 0
            logits = jnp.where(first, marginal, logits)
            return Prediction(logits if extra is None else logits + extra, Head())

        return left_to_right.write(self.twin, look, where, said, suppress=self.suppressed, law=self.law())

    def _log_probs(self, head: Head, hidden: jax.Array) -> jax.Array:
        """[B, 1, V], nats; -inf at the mask."""
        return jax.nn.log_softmax(suppressed_logits(head, hidden, self.suppressed))


def _columns(log_probs: jax.Array, size: int) -> jax.Array:
    """As many ids as ``size``, -inf for those without a column."""
    short = max(size - log_probs.shape[-1], 0)
    return jnp.pad(log_probs[..., :size], [(0, 0), (0, 0), (0, short)], constant_values=-jnp.inf)
