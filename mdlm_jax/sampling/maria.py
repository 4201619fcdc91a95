"""MARIA (arXiv 2502.06901): masks are filled from left to right by one head on a masked network and an autoregressive
twin, after a single forward of the masked network.

`models.fused` is the head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.fused import FusedHead
from mdlm_jax.models.twin import Twin
from mdlm_jax.sampling import left_to_right
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, decoder, static


@decoder
class MARIA(Decoder):
    """All masks of a block after one forward: each token from the law that knows the ones before it by the twin, and
    what is given on both sides by the masked network.

    The masked network reads the canvas once, as it stands before the first token (whether the paper reads it again
    while filling is not known); with a block length, once a block. The forwards that are counted are its; each comes
    with one pass of the twin over the row and one over the stretch with masks, a token at a time. The law is a product
    from left to right, so that a filling is scored exactly.

    Attributes:
      fused: the head's weights, with the twin.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the head's own law.
    """

    fused: FusedHead | Any = None
    mask_id: int = static(0)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)

    scorable = True
    reads_steps = False
    reach = 0
    besides = 2

    def __post_init__(self):
        self._check_law()
        if self.fused is None:
            raise ValueError("fused=None: MARIA needs a head that was trained on two networks; load a run of "
                             "train.objective=maria")

    @property
    def twin(self) -> Twin:
        return self.fused.twin

    def init(self, canvas, keys: jax.Array):
        self.fused.twin.check_length(canvas.shape[1])
        return super().init(canvas, keys)

    def check(self, call: Plan) -> None:
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: the head reads one network's hidden states, and guidance has "
                             "two; leave it at 0")

    def one_by_one(self) -> Decoder:
        raise ValueError("MARIA: one forward writes a block, and its own joint is what it writes; there is no rule of "
                         "one token a step")

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps, block_length
        return 1

    def update(self, prediction: Prediction, look: Look, state) -> tuple[Move, None]:
        del state
        where = look.masked & look.inside
        extra = left_to_right.added(prediction, self.fused.bias)

        def said(twin: Prediction, column: jax.Array) -> Prediction:
            masked = jnp.take_along_axis(prediction.hidden, column[..., None], axis=1)
            found = self.fused.prediction(masked, twin.hidden).narrowed(prediction.num_columns)
            if extra is None:
                return found
            bias = extra if found.head.bias is None else found.head.bias + extra
            return dataclasses.replace(found, head=dataclasses.replace(found.head, bias=bias))

        found = left_to_right.write(self.fused.twin, look, where, said, suppress=self.suppressed, law=self.law())
        return Move(where, found.tokens, log_prob=found.log_prob), None
