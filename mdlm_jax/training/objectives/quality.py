"""Self-correction that is learned: P2's planner and PRISM's head, beside a frozen network (`models.quality`).

Both are told rows that the network wrote in part, and learn which tokens are those of the data, y = 1[token = x_i], by
the loss softplus(s) - y s of the log-odds s, in nats. It has one minimiser, P(y = 1 | what is read):

    planner   the law of the rows that the network fills masks of any number in; a token that was seen has y = 1, and
              the planner cannot tell
    prism     with one token revealed, p(x_i = that token | the row with position i masked) in the data's own law,
              whatever the network is. With several, each y knows of the others no more than what was masked before
              them: p(x_i = token | the row with all of the revealed masked), averaged over which these may have been

No gradient reaches the network. PRISM's paper also goes on training the network by its own loss, adapters with it; that
is not here.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import flops, quality
from mdlm_jax.training.objectives.base import SECOND, TIME, Objective, scored


def judged(log_odds: jax.Array, right: jax.Array) -> jax.Array:
    """-log P(right), -log P(wrong) where it is not, from s of any shape; nats."""
    return jax.nn.softplus(jnp.where(right, -log_odds, log_odds))


@dataclasses.dataclass(frozen=True)
class QualityObjective(Objective):
    """What both share.

    Attributes:
      layers: of the small network.
    """

    layers: int = 1

    kind = ""  # one of `quality.KINDS`

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: {type(self).__name__} knows no noise but the mask; set 0")
        if self.network.attention != "bidirectional":
            raise ValueError(f"network.attention={self.network.attention!r}: whole rows are judged; the network must "
                             "be bidirectional")
        self.quality  # noqa: B018 (refuses a number of layers)

    @property
    def quality(self) -> quality.QualityConfig:
        """What trains."""
        return quality.QualityConfig(self.network, self.kind, self.layers)

    def init(self, key: jax.Array) -> dict:
        return super().init(key) | {"quality": quality.init(self.quality, jax.random.fold_in(key, 1))}

    def train_flops(self, rows: int, length: int) -> int:
        """Forwards of the network, the first with its head, and the small network with its gradient."""
        return flops.quality_train_flops(self.network, rows, length, self.kind, self.layers)

    def masks(self, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> counts.CountDraw:
        """What is masked at first."""
        return counts.draw_counts(self.noise_keys(key, rows), u, batch["noise_mask"], self.law,
                                  weighting=self.weighting)

    def said(self, trainable: dict, batch: dict, noisy: jax.Array, draw: counts.CountDraw, key, rows) -> Prediction:
        """The frozen network's."""
        time = None
        if self.network.time_conditioning:
            time = counts.time_given_count(self.noise_keys(key, rows, TIME), draw, self.process.schedule)
        return jax.lax.stop_gradient(self.denoise(trainable, batch, noisy, time, key, rows))

    def log_odds(self, trainable: dict, batch: dict, tokens: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """s [B, L] of the tokens [B, L]."""
        return quality.logits(self.quality, trainable["quality"], trainable["network"]["embedding"], tokens, hidden,
                              attention_mask=batch["attention_mask"], positions=batch["positions"])

    def masked(self, tokens: jax.Array, where: jax.Array) -> jax.Array:
        """[B, L]: the tokens with masks ``where``."""
        return jnp.where(where, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)

    @abc.abstractmethod
    def loss_at(self, trainable, batch, key, rows, u) -> LossParts:
        """As `Objective.loss_at`."""


@dataclasses.dataclass(frozen=True)
class PlannerObjective(QualityObjective):
    """P2's trained planner (arXiv 2502.03540).

    Masks are drawn by number, and z takes the network's draw at each of them. Every position of the row z is judged,
    weighted with alpha'/(1 - alpha): over all times a set of n masks has B(n, L - n + 1), its share times its weight in
    `core.counts`. The empty one, whose weight is infinite and in which nothing is drawn, is left out. Terms: ``drawn``
    at masks, ``seen`` elsewhere. At positions that the network sees z is the token there; the paper draws from the
    network there too, from outputs that no training has shaped.
    """

    kind = "planner"

    def loss_at(self, trainable, batch, key, rows, u):
        tokens, draw = batch["tokens"], self.masks(batch, key, rows, u)
        prediction = self.said(trainable, batch, self.masked(tokens, draw.masked), draw, key, rows)
        full = jnp.where(draw.masked, self.own_draws(prediction, key, rows, 0), tokens)
        loss = draw.weight[:, None] * judged(self.log_odds(trainable, batch, full), full == tokens)
        return LossParts.of(scored(batch), drawn=jnp.where(draw.masked, loss, 0.0),
                            seen=jnp.where(draw.masked, 0.0, loss))


@dataclasses.dataclass(frozen=True)
class PRISMObjective(QualityObjective):
    """PRISM's head (arXiv 2510.01384).

    Masks are drawn by number, ``reveal`` of them, chosen at random (or all, where there are fewer), take the network's
    draw, and these are judged from a second forward on the row as it then is. A row's loss is the mean over what it
    reveals, times its tokens, so that the loss a token is that of a revealed one.

    Attributes:
      reveal: tokens of a row that are judged. 1: the minimiser is exact; more: more is learned from a row.
    """

    reveal: int = 1

    kind = "prism"

    def __post_init__(self):
        super().__post_init__()
        if self.reveal < 1:
            raise ValueError(f"reveal={self.reveal}: must be at least 1")

    def shown(self, draw: counts.CountDraw, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B, L] bool: the masks that take a draw."""
        ranks = counts.random_ranks(self.noise_keys(key, rows, SECOND), draw.masked)
        return draw.masked & (ranks < self.reveal)

    def loss_at(self, trainable, batch, key, rows, u):
        tokens, draw = batch["tokens"], self.masks(batch, key, rows, u)
        noisy, shown = self.masked(tokens, draw.masked), self.shown(draw, key, rows)
        prediction = self.said(trainable, batch, noisy, draw, key, rows)
        row = jnp.where(shown, self.own_draws(prediction, key, rows, 0), noisy)
        number = shown.sum(1, dtype=jnp.int32)
        left = draw._replace(masked=draw.masked & ~shown, count=draw.count - number)
        hidden = self.said(trainable, batch, row, left, key, rows).hidden
        loss = judged(self.log_odds(trainable, batch, row, hidden), row == tokens)
        each = draw.eligible / jnp.maximum(number, 1)
        return LossParts.of(scored(batch), quality=jnp.where(shown, each[:, None] * loss, 0.0))
