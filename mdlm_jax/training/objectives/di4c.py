"""Di4C (arXiv 2410.08709): many steps of a teacher, which knows no correlations within one, become few of a mixture.

The student reads a latent (`models.latent`): p(x | x_t) = E_lambda prod_i p(x_i | x_t, lambda). M latents of a row, one
in each of M equal parts of [0, 1], stand for all; that mixture's log-probability is log mean_m exp sum_i log p_m(x_i),
on average below that of all.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import mixture
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.models import flops
from mdlm_jax.training.objectives.base import LATENT, SECOND, Routers, scored, turn_key
from mdlm_jax.training.objectives.taught import TaughtObjective


@dataclasses.dataclass(frozen=True)
class Di4CObjective(TaughtObjective):
    """With p the mixture at x_t, r the teacher's law there, and sums over the masks of x_t, in nats a row

        distilled     t < delta:  sum_i mean_m KL(r_i || p_m,i)
        consistency   else:       -log p(x) of x ~ student at x_u, one latent, x_u one step of the teacher from x_t
        data          always, alpha(t)^power times:  -log p(x) of the row itself

    Both -log p(x) are split by the control variate -sum_i log p_i(x_i), whose mean is known where x has the marginals
    r_i: terms ``consistency`` and ``data`` are sum_i log p_i(x_i) - log p(x), what the mixture makes of correlations,
    and ``marginal`` is sum_i KL(r_i || p_i), once for each. The teacher's marginals are taken for those of the student
    at x_u and of the data, as in the paper: they are, if both have learned what they should, and marginals then stay
    the teacher's. Tokens' shares of log p(x) are log p(x_i | x_<i).

    u = t - min(1 / steps, t / 2). A share ``near`` of all t is uniform below delta, the others above. The teacher is
    told a latent too, for which one that is no mixture has zero weights.

    Attributes:
      steps: those of the teacher from pure noise to text.
      latents: M.
      delta, power: see above; 0 for a row's own law to count alike at all times, up to those where all is masked.
      near: the paper's share.
    """

    latents: int = 16
    delta: float = 0.1
    power: float = 1.0
    near: float = 0.3

    fewest = 1

    def __post_init__(self):
        super().__post_init__()
        if self.latents < 1:
            raise ValueError(f"latents={self.latents}: must be at least 1")
        for name in ("delta", "near"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in (0, 1)")
        if self.power < 0:
            raise ValueError(f"power={self.power}: must not be negative")
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: {type(self).__name__} knows no noise but the mask; set it "
                             "to 0")
        if not self.network.latent:
            raise ValueError("network.latent=0: a mixture needs a network that reads a latent")

    def train_flops(self, rows: int, length: int) -> int:
        """The network on every latent; forwards of the teacher and of the student at x_u; heads to draw from both, and
        of the teacher's target twice, since the backward pass has it again."""
        return flops.taught_train_flops(self.network, rows, length, forwards=2, heads=4, copies=self.latents)

    def loss_at(self, trainable, batch, key, rows, u):
        t, far = self.times(u)
        tokens, noise_mask = batch["tokens"], batch["noise_mask"]
        noisy = self.process.corrupt(self.noise_keys(key, rows), tokens, t, noise_mask)
        teacher = self.taught(trainable, batch, noisy, t, key, rows)
        written = self.written(trainable, batch, noisy, t, teacher, key, rows)
        counted = self.process.is_mask(noisy) & scored(batch)
        found, routers = self.mixed(trainable, batch, noisy, t, jnp.stack([tokens, written]), teacher, key, rows)
        of_data, of_student = (mixture.correlation(jnp.where(counted[:, None], each, 0.0)) for each in found.chosen)
        share, far = self.process.schedule.alpha(t)[:, None] ** self.power, far[:, None]
        terms = {"distilled": jnp.where(far, 0.0, found.apart), "consistency": jnp.where(far, -of_student, 0.0),
                 "data": -share * of_data, "marginal": (far + share) * found.together}
        return LossParts.of(scored(batch), *routers,
                            **{name: jnp.where(counted, term, 0.0) for name, term in terms.items()})

    def times(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B] each: t, and whether it is delta or more."""
        far = u >= self.near
        above = self.delta + (1.0 - self.delta) * (u - self.near) / (1.0 - self.near)
        return jnp.where(far, above, self.delta * u / self.near), far

    def latents_of(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B, M], one in each of M equal parts of [0, 1]."""
        keys = self.noise_keys(turn_key(key, 1), rows, LATENT)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (self.latents,)))(keys)
        return (jnp.arange(self.latents) + drawn) / self.latents

    def written(self, trainable, batch, noisy, t, teacher: Prediction, key, rows) -> jax.Array:
        """[B, L]: rows that the student writes at once after one step of the teacher; no gradient."""
        middle = t - jnp.minimum(1.0 / self.steps, t / 2.0)
        then = self.process.reverse_step(self.noise_keys(key, rows, SECOND), noisy, middle, t,
                                         sample=self.own_draws(teacher, key, rows, 0), noise_mask=batch["noise_mask"])
        student, turn = jax.lax.stop_gradient({"network": trainable["network"]}), turn_key(key, 2)
        prediction = self.teacher.run(student, batch, then, middle, key, rows, latent=self.latent(turn, rows))[0]
        left = self.process.is_mask(then) & batch["noise_mask"]
        return jnp.where(left, self.own_draws(prediction, key, rows, 1), then)

    def mixed(self, trainable, batch, noisy, t, tokens, teacher: Prediction, key, rows):
        """The reduction of the mixture at x_t for ``tokens`` [T, B, L], and what the routers say."""
        copies = self.latents
        several, noisy, t, each = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), (batch, noisy, t, rows))
        latent = self.latents_of(key, rows).reshape(-1)
        prediction, routers = self.run(trainable, several, noisy, t, key, each, latent=latent)
        if routers.loss is not None:
            routers = Routers(routers.loss / copies, routers.stats)
        rows_here = -(-len(prediction.hidden) // self.data_shards)
        chunk = chunk_length(rows_here, prediction.num_columns, self.head_budget)
        return mixture.reduce(prediction, tokens, teacher, suppress=self.process.mask_id, chunk=chunk), routers
