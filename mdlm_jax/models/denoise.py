"""A network as what a sampling loop calls: on the whole canvas, or on a window of it beside a cache.

Any hashable ``function(params, tokens [B, L], time [B]) -> Prediction`` will do on the whole canvas (`as_model`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models import cache as caches
from mdlm_jax.models.cache import Cache
from mdlm_jax.models.config import TransformerConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Call:
    """What the network is asked: arguments of `models.api.forward`, rows [B] and positions [L] as it wants them.

    ``start``: [B] int32, where in the canvas the window begins; or [B, L] int32, where each token stands, padding
    beyond the end; None: the whole canvas, without a cache.
    ``segment``: [B, L], or of shadows too, [B, L + S].
    ``order``: [B, L] int32, what a block-causal or permutation network compares in place of the index; None: the index.
    ``condition``: [B] int32, classes, for models that have them (their attribute ``classes`` says how many).
    ``shadow``: [B, S] int32, tokens that are scored a second time, by the last S of ``tokens`` (`models.api.forward`).
    ``latent``: [B] float32 in [0, 1], for models that read one (their attribute ``latent`` says so).
    """

    tokens: jax.Array
    time: Asked  # [B] or [B, L], where the network reads one
    segment: jax.Array | None = None
    positions: jax.Array | None = None
    embeddings: jax.Array | None = None
    start: jax.Array | None = None
    order: jax.Array | None = None
    condition: jax.Array | None = None
    shadow: jax.Array | None = None
    latent: jax.Array | None = None

    @property
    def index(self) -> jax.Array:
        """[B, L] int32: where in the canvas the tokens stand."""
        index = jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)
        if self.start is None:
            return index
        return self.start if self.start.ndim == 2 else index + self.start[:, None]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network of ours; hashable, so a loop is compiled once for it.

    A network of the permutation contract reads from left to right, unless a call names another order.
    ``columns``: ids there are; a head that is wider, to be shared evenly by devices, loses the rest. 0: all.
    ``process``: the noise that a network which reads the time was trained with (`sampling.clock`).
    """

    network: TransformerConfig
    columns: int = 0
    process: Process | None = None
    learned = False  # whether every id has a schedule of its own, as `ScheduledDenoiser`'s have

    @property
    def contract(self) -> str:
        return self.network.attention

    @property
    def shifted(self) -> bool:
        return self.network.logit_shift

    @property
    def timed(self) -> bool:
        return self.network.time_conditioning

    @property
    def classes(self) -> int:
        return self.network.classes

    @property
    def latent(self) -> bool:
        return bool(self.network.latent)

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array | None = None,
                 latent: jax.Array | None = None) -> Prediction:
        """Row i of the prediction scores token i."""
        return self.run(params, Call(tokens, time, latent=latent))[0]

    def run(self, params: dict, call: Call, cache: Cache | None = None) -> tuple[Prediction, Cache | None]:
        """Rows that score the tokens they stand for, and the cache with the window written.

        In a window of a shifted network the first row keeps its own output: it has no row before it. What a causal
        network is to write may be masked by an id beyond its table, since no token sees what follows.
        """
        tokens, order = call.tokens, call.order
        if self.network.attention == "permutation" and order is None:
            length = tokens.shape[1] - (0 if call.shadow is None else call.shadow.shape[1])
            order = jnp.broadcast_to(jnp.arange(length), (tokens.shape[0], length))
        if self.network.attention == "causal":
            tokens = jnp.minimum(tokens, self.network.vocab_size - 1)
        output = api.forward(
            self.network,
            params,
            tokens,
            time=call.time if self.network.time_conditioning else None,
            condition=call.condition,
            latent=call.latent,
            attention_mask=call.segment,
            positions=call.positions,
            order=order,
            embeddings=call.embeddings,
            cache=cache,
            start=None if cache is None else call.start,
            raw=cache is not None,
            shadow=call.shadow,
        )
        found = output.prediction
        if cache is not None and self.network.logit_shift:
            hidden = jnp.concatenate([found.hidden[:, :1], found.hidden[:, :-1]], axis=1)
            found = dataclasses.replace(found, hidden=hidden)
        return found.narrowed(self.columns), output.cache

    def cache(self, rows: int, slots: int) -> Cache:
        """An empty cache."""
        return caches.empty(self.network, rows, slots)

    def cache_shardings(self, mesh: Mesh) -> Cache:
        """How it lies on a mesh."""
        return caches.shardings(self.network, mesh)

    def cache_bytes(self, rows: int, slots: int) -> int:
        """What `cache` takes."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(
            jax.eval_shape(lambda: self.cache(rows, slots))))


@dataclasses.dataclass(frozen=True)
class _OnWholeCanvas:
    """What has no cache: subclasses give ``__call__(params, tokens, time) -> Prediction``."""

    contract = "bidirectional"
    shifted = False
    learned = False
    latent = False
    padding = False  # whether it can be told of some

    @property
    def timed(self) -> bool:
        return True

    @property
    def process(self) -> Process | None:
        return None

    @property
    def classes(self) -> int:
        return 0

    def __call__(self, params, tokens: jax.Array, time: Asked) -> Prediction:
        raise NotImplementedError

    def run(self, params, call: Call, cache: None = None) -> tuple[Prediction, None]:
        self._check(call)
        return self(params, call.tokens, call.time), None

    def _check(self, call: Call) -> None:
        if call.segment is not None or call.embeddings is not None:
            raise ValueError(f"{type(self).__name__}: takes tokens and times alone; leave padding and embeddings "
                             "out")
        if call.shadow is not None:
            raise ValueError(f"{type(self).__name__}: scores every token once, and shadows are a second time; take a "
                             "network of ours (`Denoiser`), or another decoder")


@dataclasses.dataclass(frozen=True)
class CausalDenoiser(_OnWholeCanvas):
    """As `Denoiser`, for a causal network whose row i scores token i+1: row i of the prediction scores token i.

    Token i is scored from the tokens before it alone; the first from ``start_id``, which stands before every row.
    """

    network: TransformerConfig
    start_id: int
    columns: int = 0
    contract = "causal"
    timed = False

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array | None = None) -> Prediction:
        return self.run(params, Call(tokens, time))[0]

    @property
    def classes(self) -> int:
        return self.network.classes

    def run(self, params, call: Call, cache: None = None) -> tuple[Prediction, None]:
        self._check(call)
        before = one_before(call.tokens, None, self.start_id)
        found = api.apply(self.network, params, before, condition=call.condition, raw=True)
        return found.narrowed(self.columns), None


@dataclasses.dataclass(frozen=True)
class ScheduledDenoiser(_OnWholeCanvas):
    """As `Denoiser`, for params {"network", "schedule"} of GenMD4: the learned powers come with the prediction."""

    network: TransformerConfig
    columns: int = 0
    learned = True
    padding = True

    @property
    def timed(self) -> bool:
        return self.network.time_conditioning

    @property
    def classes(self) -> int:
        return self.network.classes

    def __call__(self, params: dict, tokens: jax.Array, time: Asked) -> ScheduledPrediction:
        return self.run(params, Call(tokens, time))[0]

    def run(self, params, call: Call, cache: None = None) -> tuple[ScheduledPrediction, None]:
        found = Denoiser(self.network, self.columns).run(params["network"], call)[0]
        return ScheduledPrediction(found.hidden, found.head, VectorSchedule().powers(params["schedule"])), None


@dataclasses.dataclass(frozen=True)
class Foreign(_OnWholeCanvas):
    """``function(params, tokens, time) -> Prediction`` of any origin; `Prediction.from_logits` wraps logits.

    ``timed``: whether the result depends on the times. ``process``: as for `Denoiser`; None: the time of a row is its
    share of noise.
    """

    function: Callable
    timed: bool = True
    process: Process | None = None

    def __call__(self, params, tokens: jax.Array, time: Asked) -> Prediction:
        """ValueError where the function gives something else."""
        found = self.function(params, tokens, time)
        name = getattr(self.function, "__name__", type(self.function).__name__)
        if not isinstance(found, Prediction):
            raise ValueError(f"{name}: gives {type(found).__name__}; wrap its logits, as in "
                             "core.prediction.Prediction.from_logits(logits)")
        if found.hidden.ndim != 3 or found.hidden.shape[:2] != tokens.shape:
            raise ValueError(f"{name}: gives a prediction of shape {list(found.hidden.shape)}; it must be "
                             f"[{tokens.shape[0]}, {tokens.shape[1]}, ids], a row of logits for every token")
        return found


def as_model(denoise):
    """``denoise`` itself if it is one of the above (or alike), else a function wrapped. ValueError: it is neither."""
    if hasattr(denoise, "run"):
        return denoise
    if not callable(denoise):
        raise ValueError(f"denoise={denoise!r}: must be a function (params, tokens, time) -> Prediction, or a model of "
                         "models.denoise")
    return Foreign(denoise)


def one_before(tokens: jax.Array, segment: jax.Array | None, start_id: int) -> jax.Array:
    """[B, L]: the token before each, ``start_id`` before the first of a row and of every segment [B, L] int32."""
    before = jnp.roll(tokens, 1, axis=1)
    first = jnp.arange(tokens.shape[1])[None] == 0
    if segment is not None:
        first = first | (segment != jnp.roll(segment, 1, axis=1))
    return jnp.where(first, jnp.asarray(start_id, tokens.dtype), before)
