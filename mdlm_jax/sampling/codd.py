"""CoDD (arXiv 2603.00045): several tokens a forward, from the product of the marginals with a small circuit.

`models.circuit` is that circuit, a hidden Markov model; `training.objectives.codd` trains it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical, draws, hmm
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models.circuit import Circuit, Emissions
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, at_places, check, decoder, static, take_best


class _Read(NamedTuple):
    """What the circuit makes of a row.

    on: [B] bool, whether it is asked. evidence, predicted, after: [B, W, S], see `core.hmm`.
    """

    on: jax.Array
    chain: hmm.Chain
    emissions: Emissions
    at: hmm.Places
    evidence: jax.Array
    predicted: jax.Array
    after: jax.Array


@decoder
class CoDD(Decoder):
    """Draws K tokens a forward jointly, from the product of the network's marginals with a hidden Markov model.

    The chain spans the row: tokens that are seen are read, masks that are not written now are summed out. A path of
    states is drawn from the filter backwards, then each token from what its state and the network say. With K the masks
    of the least entropy under the product are written, so that positions depend on the canvas alone. Temperature,
    nucleus and top k are of the network's marginals, before the product, which is then exact; the paper tempers after
    the path is drawn. At temperature 0 each draw, of states too, takes the likeliest.

    Attributes:
      circuit: the circuit's weights; of a run of train.objective=codd:16.
      tokens: K, tokens a forward; 0: everything at once, of a block where there are blocks.
      max_masked: in rows with more than this share of what is to be written still masked tokens come from the marginals
        alone (gamma of the paper, 0.6 to 0.8, there of a block of 32); 1: the circuit is always asked.
      temperature, top_p, top_k: of the marginals; 1, 1 and 0 are the network's own.
      head_budget: logits alive at once; it changes memory, not results.
    """

    circuit: Circuit | Any = None
    mask_id: int = static(0)
    tokens: int = static(0)
    max_masked: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    scorable = True
    reads_steps = False
    reach = 0

    def __post_init__(self):
        self._check_law()
        check("tokens", self.tokens, lambda k: k >= 0 and k == int(k), "must be at least 1 token a forward, or 0 for "
              "everything at once")
        check("max_masked", self.max_masked, lambda x: 0 <= x <= 1, "must lie in [0, 1], a share of the masks")
        if self.circuit is None:
            raise ValueError("circuit=None: CoDD needs what train.objective=codd:16 trained for this network; load a "
                             "run of it")

    def check(self, call: Plan) -> None:
        if call.contract != "bidirectional":
            raise ValueError(f"circuit: CoDD's is trained beside networks that see whole rows, and this one is "
                             f"{call.contract}; use adjust, or a bidirectional network")
        if call.columns > self.circuit.config.columns:
            raise ValueError(f"circuit: emits {self.circuit.config.columns} ids and the network {call.columns}; load "
                             "the run that trained it for this network")

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps
        return block_length

    def one_by_one(self) -> "CoDD":
        """The network's own law, without the circuit, which would weigh what the network knows exactly by then."""
        return dataclasses.replace(self, tokens=1, max_masked=0.0)

    def update(self, prediction: Prediction, look: Look, state) -> tuple[Move, Any]:
        read, masked = self._read(prediction, look), look.masked & look.inside
        chosen = self._surest(prediction, look, read, masked) if self.tokens else masked
        path = hmm.path(read.chain, read.at, read.predicted + read.evidence,
                        at_places(lambda key: key, look.stream(1), look.place), jnp.asarray(self.temperature) <= 0)
        sample, log_marginal = self._drawn(prediction, look, read, path, chosen)
        if look.forced is None:
            return Move(chosen, sample), state
        likely = jnp.where(chosen, log_marginal, 0.0) + self._weighed(look, read, chosen)
        greedy = jnp.where(sample == look.forced, 0.0, -jnp.inf)
        log_prob = jnp.where(jnp.asarray(self.temperature) > 0, likely, greedy)
        return Move(chosen, look.forced, log_prob=log_prob), state

    def _read(self, prediction: Prediction, look: Look) -> _Read:
        chain, emissions = self.circuit.parts()
        open_ = look.canvas.editable & (look.canvas.tokens == self.mask_id)
        on = open_.sum(1) <= self.max_masked * look.canvas.editable.sum(1)
        at, unknown = hmm.places(look.segment), (look.tokens == self.mask_id) & (look.segment > 0)
        expected = self._over(lambda hidden: emissions.expected(self._law(prediction, hidden)), prediction,
                              prediction.hidden, unknown)
        said = jnp.where(unknown[..., None], expected, emissions.of(look.tokens))
        evidence = hmm.ended(chain, at, jnp.where(on[:, None, None], said, 0.0))
        predicted, after = hmm.filtered(chain, at, evidence)[0], hmm.behind(chain, at, evidence)
        return _Read(on, chain, emissions, at, evidence, predicted, after)

    def _surest(self, prediction: Prediction, look: Look, read: _Read, masked: jax.Array) -> jax.Array:
        """[B, W] bool: the masks of the least entropy under the product, each by itself."""
        def one(pieces):
            hidden, around = pieces
            law = self._law(prediction, hidden)
            said = read.emissions.mixed(jax.nn.log_softmax(around), law.shape[-1])
            law = jax.nn.log_softmax(law + jnp.where(read.on[:, None, None], said, 0.0))
            return -jnp.where(law > -jnp.inf, jnp.exp(law) * law, 0.0).sum(-1)

        around = hmm.ended(read.chain, read.at, read.predicted + read.after)
        entropy = self._over(one, prediction, (prediction.hidden, around), masked)
        return take_best(-entropy, masked, jnp.full(masked.shape[:1], self.tokens))

    def _drawn(self, prediction: Prediction, look: Look, read: _Read, path: jax.Array, chosen: jax.Array):
        """Draws [B, W] given the path, and the marginals' log-probability of what is forced, where something is."""
        leaves, keys = read.emissions.log.T, at_places(lambda key: key, look.stream(0), look.place)

        def one(pieces):
            hidden, states, keys, forced = pieces
            law = self._law(prediction, hidden)
            logits = law + jnp.where(read.on[:, None, None], leaves[states][..., : law.shape[-1]], 0.0)
            drawn = jax.vmap(jax.vmap(categorical.categorical))(keys, logits)
            drawn = jnp.where(jnp.asarray(self.temperature) > 0, drawn, jnp.argmax(logits, axis=-1))
            return drawn.astype(jnp.int32), None if forced is None else _at(law, forced)

        pieces = (prediction.hidden, path, keys, look.forced)
        return self._over(one, prediction, pieces, chosen)

    def _weighed(self, look: Look, read: _Read, chosen: jax.Array) -> jax.Array:
        """[B, W]: what the circuit adds to the log-probability of each token that is forced, given those before."""
        said = jnp.where(read.on[:, None, None], read.emissions.of(look.forced), 0.0)
        clamped = jnp.where(chosen[..., None], hmm.ended(read.chain, read.at, said), read.evidence)
        predicted = hmm.filtered(read.chain, read.at, clamped)[0]
        return hmm.conditional(predicted, read.evidence, clamped, read.after)

    def _law(self, prediction: Prediction, hidden: jax.Array) -> jax.Array:
        """log pi [..., V] of hidden states [..., D]."""
        return jax.nn.log_softmax(draws.law(suppressed_logits(prediction.head, hidden, self.mask_id), **self.law()))

    def _over(self, one: Callable, prediction: Prediction, pieces, where: jax.Array):
        """``one`` where it is wanted, in chunks of positions."""
        rows, length = where.shape
        chunk = chunk_length(rows, prediction.logits_held, self.head_budget)
        return draws.over_wanted(one, pieces, where, min(chunk, draws.enough(rows), length))


def _at(log_probs: jax.Array, ids: jax.Array) -> jax.Array:
    """log_probs[..., ids]; -inf for ids without a column."""
    inside = ids < log_probs.shape[-1]
    found = jnp.take_along_axis(log_probs, jnp.where(inside, ids, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, found, -jnp.inf)
