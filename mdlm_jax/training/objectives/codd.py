"""CoDD's circuit beside a frozen network: the likelihood of what is masked under their product (arXiv 2603.00045).

Masks M are drawn by number; the network says pi_i at each of them, and the loss is exact (`models.circuit`):

    -log p(x_M | row) = log sum_z w(z) - log sum_z w(z; x_M),

per position, from the left to the right, -log p(x_i | x_M before i, what is seen), whose sum it is. With weights 1 / (n
P(n)) for n masks (`core.counts`) a row's loss is the mean over its masks times its tokens: with a circuit that says
nothing it is the network's own masked bound. It is itself none, but of all masks alone: it is the mean over n of what a
token costs that is written with all the others at once.

The circuit spans the whole row, where the paper's spans blocks of 32 tokens. No gradient reaches the network.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import hmm
from mdlm_jax.core.chunks import over_chunks
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models import circuit, flops
from mdlm_jax.models.circuit import Emissions
from mdlm_jax.training.objectives.base import scored
from mdlm_jax.training.objectives.beside import BesideObjective


@dataclasses.dataclass(frozen=True)
class CoDDObjective(BesideObjective):
    """Trains the circuit; the network's weights stay as they are.

    Attributes:
      states: S of its hidden Markov model.
    """

    states: int = 16

    whole = "joined by the circuit"

    def __post_init__(self):
        super().__post_init__()
        self.circuit  # noqa: B018 (refuses a number of states)

    @property
    def circuit(self) -> circuit.CircuitConfig:
        """What trains."""
        return circuit.CircuitConfig(self.states, self.network.head_size)

    def init(self, key: jax.Array) -> dict:
        return super().init(key) | {"circuit": circuit.init(self.circuit, jax.random.fold_in(key, 1))}

    def train_flops(self, rows: int, length: int) -> int:
        """A forward of the network with its head, and the circuit with its gradient."""
        return flops.circuit_train_flops(self.network, rows, length, self.states)

    def loss_at(self, trainable, batch, key, rows, u):
        tokens, draw = batch["tokens"], self.masks(batch, key, rows, u)
        prediction = self.said(trainable, batch, self.masked(tokens, draw.masked), draw, key, rows)
        log_prob = self.log_prob(trainable["circuit"], prediction, tokens, draw.masked, batch["attention_mask"])
        loss = jnp.where(draw.masked, -draw.weight[:, None] * log_prob, 0.0)
        return LossParts.of(scored(batch), circuit=loss)

    def log_prob(self, params: dict, prediction: Prediction, tokens: jax.Array, masked: jax.Array,
                 segment: jax.Array) -> jax.Array:
        """[B, L] nats, log p(x_i | masks' tokens before i, what is seen) at the masks.

        Args:
          params: of `circuit.init`. prediction: the network's, of the row with its masks [B, L] bool.
          segment: [B, L] int32 or bool; the circuit runs in each by itself, and over no padding.
        """
        (chain, emissions), at = circuit.parts(params), hmm.places(segment.astype(jnp.int32))
        said = emissions.of(tokens)
        expected = jnp.where(masked[..., None], self.expected(emissions, prediction), said)
        evidence, clamped = (hmm.ended(chain, at, x) for x in (expected, said))
        before, after = hmm.filtered(chain, at, clamped)[0], hmm.behind(chain, at, evidence)
        return hmm.conditional(before, evidence, clamped, after) + self.reduce(prediction, target=tokens).target

    def expected(self, emissions: Emissions, prediction: Prediction) -> jax.Array:
        """log sum_c e_z(c) pi_i(c) [B, L, S], in chunks of positions whose logits are made again for the gradient."""
        @jax.checkpoint
        def one(emissions, hidden):
            logits = suppressed_logits(prediction.head, hidden, self.process.mask_id)
            return emissions.expected(jax.nn.log_softmax(logits))

        length = prediction.hidden.shape[1]
        chunk = min(self._chunk(prediction), length)
        return over_chunks(lambda hidden: one(emissions, hidden), prediction.hidden, length, chunk)
