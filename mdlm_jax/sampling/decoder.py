"""What a decoder is: a frozen dataclass that looks at a window of the canvas and says what to write there.

The loop (`sampling.loop`) owns the rest: forwards and their count, blocks, caches, traces, forced tokens, and that
nothing but editable positions of unfinished rows ever changes.

A decoder is a pytree. Its numbers (temperature, thresholds) are leaves, so another value does not recompile; fields
marked ``static()`` choose the program. Its state is a pytree of arrays with the rows in front, [B, ...].
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.core import categorical, draws
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.reduction import chunk_length


def static(default=dataclasses.MISSING) -> Any:
    """A dataclass field that chooses the program."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True)
def decoder(cls):
    """Makes a class a frozen dataclass and a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def check(name: str, value, valid: Callable[[Any], bool], remedy: str) -> None:
    """Refuses a known number that is not ``valid(value)``; traced ones were checked when they were numbers."""
    if isinstance(value, (bool, int, float, np.number)) and not valid(value):
        raise ConfigError(f"{name}={value}: {remedy}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Look:
    """A decoder's view of the window it may write in: the current block, or the whole canvas.

    Attributes:
      tokens: [B, W] int32.
      editable: [B, W] bool: before the end of the block, or of the last one ahead that the decoder may write in;
        editable, in a row that is still being written.
      inside: [B, W] bool: inside the block; everything, unless the decoder reaches back or writes ahead.
      index, place: [B, W] int32, index in the canvas and place in the row.
      step: [B] int32, forwards this row has had in this block; steps: [] int32, how many the block is given.
      updates: [B] int32, forwards it has had in all blocks.
      t, s: [B] float32, the grid's time now and after this step.
      here, ahead: [B] float32, shares of noise for networks that read the time, see `sampling.clock`.
      first_masks: [B] int32, editable masks of the block when it began.
      keys: [B] keys of this row and step.
      forced: [B, W] int32, the tokens to take instead of draws, or None.
      stop_id: [] int32, the token after which a row is finished; -1: none.
      canvas: all of it.
      mask_id: static.
      entering: static; whether this is the forward over the whole canvas with which a cached block begins.
      opening: static; whether it is, and the block's first token must be written now: the windows that follow are of a
        shifted network, which scores a token from the row before it, and theirs begin with the block.
    """

    tokens: jax.Array
    editable: jax.Array
    inside: jax.Array
    index: jax.Array
    place: jax.Array
    step: jax.Array
    steps: jax.Array
    updates: jax.Array
    t: jax.Array
    s: jax.Array
    here: jax.Array
    ahead: jax.Array
    first_masks: jax.Array
    keys: jax.Array
    forced: Asked
    stop_id: jax.Array
    canvas: Any
    mask_id: int | None = static(None)
    entering: bool = static(False)
    opening: bool = static(False)

    @property
    def masked(self) -> jax.Array:
        """[B, W] bool: editable masks."""
        if self.mask_id is None:
            return jnp.zeros(self.tokens.shape, bool)
        return self.editable & (self.tokens == self.mask_id)

    @property
    def segment(self) -> jax.Array:
        """[B, W] int32, segments, 0 for padding and beyond the end, where a window may reach."""
        real = (self.index < self.canvas.shape[1]).astype(jnp.int32)
        if self.canvas.segment is None:
            return real
        index = jnp.minimum(self.index, self.canvas.shape[1] - 1)
        return real * jnp.take_along_axis(self.canvas.segment, index, axis=1)

    @property
    def last(self) -> jax.Array:
        """[B] bool: whether this is the block's last step."""
        return self.step + 1 >= self.steps

    @property
    def quota(self) -> jax.Array:
        """[B] int32: tokens to reveal now so that ``first_masks`` are spread evenly over ``steps``, the rest first."""
        return self.first_masks // self.steps + (self.step < self.first_masks % self.steps)

    @property
    def due(self) -> jax.Array:
        """[B] int32: masks of the block to reveal now so that the quotas of later steps do for the rest; may be < 1.

        The quota, unless earlier steps kept to another number.
        """
        later = jnp.maximum(self.steps - 1 - self.step, 0)
        rest = self.first_masks // self.steps * later
        rest = rest + jnp.maximum(self.first_masks % self.steps - 1 - self.step, 0)
        return (self.masked & self.inside).sum(1, dtype=jnp.int32) - rest

    def stream(self, number: int) -> jax.Array:
        """[B] keys for one of a step's several uses of randomness."""
        return fold(self.keys, number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Move:
    """What a step does to the window.

    Attributes:
      write: [B, W] bool, where ``tokens`` go. The loop adds "if editable".
      tokens: [B, W] int32.
      remask: [B, W] bool or None, where masks go.
      log_prob: [B, W] float32 or None: log-probability, in nats, of ``tokens`` under the law they were drawn from; what
        exact scoring adds up over ``write``.
    """

    write: jax.Array
    tokens: jax.Array
    remask: jax.Array | None = None
    log_prob: Asked = None


class Decoder:
    """The interface, with what most decoders do."""

    if TYPE_CHECKING:
        temperature: float  # fields of those that draw
        top_p: float
        top_k: int
        head_budget: int

        @property
        def mask_id(self) -> int | Any: ...  # a field, or a property

    reads_steps = True  # whether it goes by the number of steps; else a call's is refused
    tells_time = False  # whether `inputs` puts in the time, where it goes by times of its own
    ordered = False  # whether it has an order of its own for networks of the permutation contract
    lasts = False  # whether its state, begun before the first block, goes on from block to block
    reads_masks = False  # whether it reads the prediction at masks alone, and writes there alone
    opens = False  # whether it writes the block's first token where a look is ``opening``
    steady = False  # whether the network must say the same of the same row whenever it is asked
    besides = 0  # whole rows that other networks run on beside a forward
    ahead = 0  # blocks after them that it may write in already
    keep_crossing = True  # whether the nucleus of top_p keeps the token that crosses it

    @property
    def scorable(self) -> bool:
        """Whether positions depend on the state alone, never on what was drawn."""
        return False

    @property
    def partial(self) -> bool:
        """Whether it may leave masks in the end; else a rule of one's own that does is an error."""
        return False

    @property
    def reads_grid(self) -> bool:
        """Whether it goes by the times t and s of a look; else a call's grid is refused."""
        return False

    @property
    def reuses(self) -> bool:
        """Whether a forward is left out where no token has changed since the last."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether its state holds hidden states."""
        return False

    @property
    def foresees(self) -> bool:
        """Whether `foreseen` tells before the forward where it will write."""
        return False

    @property
    def copies(self) -> int:
        """Of every row that a forward runs on."""
        return 1

    @property
    def edits(self) -> tuple[int, ...]:
        """Columns it reads that stand for no token, beyond the ids or among them."""
        return ()

    @property
    def reach(self) -> int:
        """Blocks it may write in, the newest last; 0: everything up to the end of the block."""
        return 1

    def init(self, canvas, keys: jax.Array):
        """The canvas to begin with (a prior other than masks is drawn here)."""
        del keys
        return canvas

    def grid(self, steps: int) -> "str | np.ndarray":
        """The times of a block's steps where the call names none; see `sampling.grid`."""
        del steps
        return "uniform"

    def begin(self, look: Look, hidden: Asked) -> Any:
        """The state at the beginning of a block. ``hidden``: zeros like a prediction's, where it ``remembers`` one."""
        del look, hidden

    def inputs(self, call, look: Look, state):
        """The network's call for this step, with another time, other embeddings, or several copies of every row side by
        side, [B * copies, ...] (`sampling.copies`); the prediction then has as many. Positions must stay: the loop
        reads the look's off the prediction by their places. Shadows (`models.denoise.Call`) may be appended: the
        prediction has them behind the look's."""
        del look, state
        return call

    def shadows(self, block: int) -> int:
        """How many shadows stand behind a window with ``block`` positions to be written in."""
        del block
        return 0

    def heard(self, prediction: Prediction, call, look: Look, state) -> Any:
        """The state after a forward, by what it says of all the positions that ``call`` ran on, before `update`."""
        del prediction, call, look
        return state

    def foreseen(self, look: Look) -> tuple[jax.Array, jax.Array]:
        """Scores [B, W] and counts [B]: it will write at so many masks of the block, those of the largest scores."""
        raise NotImplementedError

    def update(self, prediction: Prediction, look: Look, state) -> tuple[Move, Any]:
        """One step. ``prediction`` scores the positions of ``look``."""
        raise NotImplementedError

    def done(self, look: Look, state) -> jax.Array:
        """[B] bool, after an update (``look`` shows the window after it): whether the row is done with the block."""
        del state
        return ~(look.masked & look.inside).any(1)

    def limit(self, steps: jax.Array, block_length: int) -> jax.Array | int:
        """Most forwards a block may take: what ends the loop whatever the network says."""
        del block_length
        return steps

    def draw(self, prediction, look: Look, wants: tuple[str, ...], *, where=None, most: int | None = None, current=None,
             may_draw_mask: bool = False, extrapolate=None, raised=None) -> draws.Drawn:
        """`core.draws.draw` at the positions of the look, by the decoder's own law; the mask is never drawn.

        Reads `law` and the field head_budget. ``raised`` as in `core.draws`.
        """
        chunk = chunk_length(look.tokens.shape[0], prediction.logits_held, self.head_budget)
        return draws.draw(
            prediction, look.stream(0), suppress=None if may_draw_mask else self.suppressed, wants=wants,
            current=current, forced=look.forced, positions=look.place, where=where, most=most, extrapolate=extrapolate,
            raised=raised, chunk=chunk, **self.law(),
        )

    def law(self) -> dict[str, Any]:
        """The arguments of `core.draws.draw` that say what is drawn from."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
                "keep_crossing": self.keep_crossing}

    @property
    def suppressed(self) -> int | None:
        """The id that is never drawn."""
        return self.mask_id

    def _check_law(self) -> None:
        check("temperature", self.temperature, lambda t: 0 <= t < float("inf"), "must be 0 (greedy) or positive")
        check("top_p", self.top_p, lambda p: 0 < p <= 1, "must lie in (0, 1]; 1 draws from all tokens")
        check("top_k", self.top_k, lambda k: k >= 0 and k == int(k), "must not be negative; 0 draws from all tokens")

    def _check_one_schedule(self, call: "Plan") -> None:
        """Refuses a network with a schedule for every id, where the rule goes by one for all."""
        if call.learned:
            raise ValueError(f"{type(self).__name__}: goes by one schedule, and this network has learned one for every "
                             "id (GenMD4); use LearnedScheduleAncestral, or a decoder without a schedule")

    def one_by_one(self) -> "Decoder":
        """The same rule revealing one token a step, and what is certain, given as many steps as there are tokens.

        Its law is the model's own joint, what `evaluation.scoring` compares parallel decoding with.

        Raises:
          ValueError: there is no such rule.
        """
        return self

    def check(self, call: "Plan") -> None:
        """Refuses what does not fit, before anything is compiled.

        Raises:
          ValueError: naming the option, the value and the remedy.
        """
        del call


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a decoder may refuse: the model's contract and the call's numbers.

    Attributes:
      contract: bidirectional, causal, block_causal, ...
      shifted: the network's row i scores token i + 1 (and was aligned).
      learned: the network has a schedule for every id (GenMD4).
      steps: of each block; block_length; blocks; cache: name of the cache.
      tokens: most positions that a row has to write in a block.
      columns: of the network's head that it reads; 0: not known (a function).
      prompted: whether anything is not editable.
      padding: whether the network can be told of padding.
      timed: whether it reads the time.
      pooled: whether positions share pools of experts. backend: of its attention.
      guidance: strength, 0 for none. ``grid``: whether the call names times.
    """

    contract: str
    shifted: bool
    learned: bool
    steps: int
    block_length: int
    tokens: int
    columns: int
    blocks: int
    cache: str
    prompted: bool
    padding: bool
    timed: bool
    pooled: bool
    backend: str
    guidance: float
    forced: bool
    grid: bool


def fold(keys: jax.Array, number) -> jax.Array:
    """[B] keys folded with one number, or with one a row [B]."""
    axis = 0 if jnp.ndim(number) else None
    return jax.vmap(jax.random.fold_in, in_axes=(0, axis))(keys, number)


def random_scores(keys: jax.Array, places: jax.Array) -> jax.Array:
    """[B, W] float32 > 0, independent Exp(1), one for each place [B, W] of each key [B]; hardly ever equal."""
    return at_places(lambda key: categorical.exponential(key, ()), keys, places)


def lots(keys: jax.Array, places: jax.Array, p: jax.Array) -> jax.Array:
    """[B, W] bool, independently True with probability ``p`` in [0, 1], that broadcasts: where Exp(1) < -log(1 - p)."""
    return random_scores(keys, places) < -jnp.log1p(-p)


def best_first(score: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, W] int32: the columns, candidates first, the largest score first; of equal ones those further left."""
    return jax.vmap(lambda outside, worse: jnp.lexsort((worse, outside)))(~candidates, -score)


def ranks(score: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, W] int32: 0 for the candidate of the largest score [B, W], then 1, 2, ...; equal ones from the left.

    What is no candidate comes after all that are.
    """
    return jnp.argsort(best_first(score, candidates), axis=1)


def take_best(score: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """[B, W] bool: the ``count`` [B] candidates of the largest score [B, W]; of equal ones those further left."""
    return candidates & (ranks(score, candidates) < count[:, None])


def at_places(draw: Callable[[jax.Array], jax.Array], keys: jax.Array, places: jax.Array) -> jax.Array:
    """[B, W]: ``draw(key)`` with a key for each row [B] and place [B, W], so that a window changes nothing."""
    fold_places = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    return jax.vmap(jax.vmap(draw))(fold_places(keys, places))
