"""LLaDA2.2's decoder: tokens are drafted, replaced, deleted and inserted, in one forward."""

import functools

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws
from mdlm_jax.core.levenshtein import moved, places
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.sampling.block_threshold import at_least
from mdlm_jax.sampling.confidence import fraction
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, static

_NONE = -1  # in place of an id


@decoder
class Levenshtein(Decoder):
    """`JointThreshold` for networks that also say delete and insert: what a step writes may move what stands behind it.

    Serving engines know the rule as JointThresholdInDel (SGLang); known from their code alone. With v_l what is drawn
    at l, c_l its probability, and the masks told apart into those that the block began with and new ones, a step
    writes v on

        Gamma = {l masked: c_l > threshold}, at least the 1 + (new masks) surest; all once none of the first are left
        Delta = {l written: v_l != x_l, c_l > edit_threshold}

    at once. Then, from the left, a position that was told delete is dropped, one that was told insert becomes a mask
    and what it was, and the block is cut or filled up with (new) masks to its length W: `core.levenshtein`. A first
    mask never draws a mask. Where a block stands as it stood before, the least sure of the positions about to change
    takes another token than all that it was given before. A block is done after a step with nothing to write, and at
    the latest after one without deletions, insertions and masks: when more than ``max_post_steps`` steps began without
    first masks, or more than W + max_post_steps in all. It takes no ``steps``.

    Nothing given ever moves. Behind a prompt the block's end moves freely; where given tokens stand between others
    that are to be written, tokens are only replaced, since room on one side cannot be had from the other.

    Attributes:
      mask_id: the mask token.
      delete_id, insert_id: columns of the network's head, among the ids or beyond them; never written themselves.
      threshold: c above which masks are revealed.
      edit_threshold: c above which tokens are replaced, deleted or moved; 0: wherever the network disagrees.
      max_post_steps: steps spent on editing alone. It is the length of what is remembered, so it chooses the program.
      temperature: of the draw; 0, as served, takes the argmax, and c is the network's own probability.
    """

    mask_id: int = static()
    delete_id: int | None = static(None)
    insert_id: int | None = static(None)
    threshold: float = 0.5
    edit_threshold: float = 0.0
    max_post_steps: int = static(16)
    temperature: float = 0.0
    head_budget: int = static(1 << 22)

    reads_steps = False

    def __post_init__(self):
        for name in ("delete_id", "insert_id"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}=None: {type(self).__name__} needs a network that says delete and insert; "
                                 "load a run of train.objective=levenshtein, or decode with joint_threshold")
            check(name, getattr(self, name), lambda i: i >= 0, "must be a column of the head")
        if len({self.mask_id, *self.edits}) < 3:
            raise ValueError(f"mask_id={self.mask_id}, delete_id={self.delete_id}, insert_id={self.insert_id}: must "
                             "be three columns")
        check("temperature", self.temperature, lambda t: 0 <= t < float("inf"), "must be 0 (greedy) or positive")
        fraction("threshold", self.threshold)
        fraction("edit_threshold", self.edit_threshold)
        check("max_post_steps", self.max_post_steps, lambda n: n >= 0 and n == int(n), "must be a whole number; 0 "
              "edits while there are first masks alone")

    @property
    def edits(self) -> tuple[int, ...]:
        assert self.delete_id is not None and self.insert_id is not None  # as the constructor has checked
        return self.delete_id, self.insert_id

    def check(self, call: Plan) -> None:
        if 0 < call.columns <= max(self.edits):
            raise ValueError(f"delete_id={self.delete_id}, insert_id={self.insert_id}: the network has {call.columns} "
                             "columns; give one of train.objective=levenshtein, or decode with joint_threshold")

    def begin(self, look: Look, hidden) -> dict[str, jax.Array]:
        """The state: first [B, W], masks the block began with, moving with what takes their place; post, finished [B];
        seen, given [B, limit, W], the block before each step and what that wrote, -1 for nothing."""
        del hidden
        rows, width = look.tokens.shape
        nothing = jnp.full((rows, self.limit(look.steps, width), width), _NONE, jnp.int32)
        return {"first": look.masked, "post": jnp.zeros_like(look.step), "finished": jnp.zeros(look.step.shape, bool),
                "seen": nothing, "given": nothing}

    def update(self, prediction: Prediction, look: Look, state):
        first = state["first"] & look.masked
        post = state["post"] + ~first.any(1)
        last = (post > self.max_post_steps) | (look.step >= look.tokens.shape[1] + self.max_post_steps)
        tokens, ordinary, sure = self._drawn(prediction, look, first & ~last[:, None])
        count = 1 + (look.masked & ~first).sum(1, dtype=jnp.int32)
        drafts = at_least(count, sure, self.threshold, look.masked)
        drafts = jnp.where((first.any(1) & ~last)[:, None], drafts, look.masked)
        written = look.editable & ~look.masked
        write = drafts | (written & (tokens != look.tokens) & (sure > self.edit_threshold))
        tokens = jnp.where(last[:, None], ordinary, tokens)
        tokens = self._unlike_before(prediction, look, state, ~last, first, jnp.where(write, sure, jnp.inf), tokens)
        now = (jnp.arange(state["seen"].shape[1]) == look.step[:, None])[..., None]
        after, first = self._rebuilt(look, write, tokens, state["first"])
        return Move(look.editable, after), {
            "first": first, "post": post, "finished": last | ~write.any(1),
            "seen": jnp.where(now, look.tokens[:, None], state["seen"]),
            "given": jnp.where(now, jnp.where(write, tokens, _NONE)[:, None], state["given"]),
        }

    def _drawn(self, prediction, look: Look, no_mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, W] each: the draw, where ``no_mask`` among the others; one that is a token; the first one's chance."""
        ids = [(), (self.mask_id,), self.edits, (self.mask_id, *self.edits)]
        draw = functools.partial(draws.outside, prediction, look.stream(0), positions=look.place, where=look.editable,
                                 temperature=self.temperature,
                                 chunk=chunk_length(look.tokens.shape[0], prediction.logits_held, self.head_budget))
        free, unmasked, fixed, ordinary = draw([jnp.array(some, jnp.int32) for some in ids])
        moves, pick = _moves(look)[:, None], lambda where: lambda a, b: jnp.where(where, a, b)
        anything = jax.tree.map(pick(moves), free, fixed)
        no_mask = no_mask & (anything[0] == self.mask_id)
        tokens, log_prob = jax.tree.map(pick(no_mask), jax.tree.map(pick(moves), unmasked, ordinary), anything)
        special = functools.reduce(jnp.logical_or, (tokens == some for some in ids[-1]))
        return tokens, jnp.where(special, ordinary[0], tokens), jnp.exp(log_prob)

    def _unlike_before(self, prediction, look: Look, state, may: jax.Array, first, sure, tokens) -> jax.Array:
        """``tokens``, one of them another than before where the block is one that was seen. ``sure``: inf where
        nothing is written; ``may`` [B]."""
        changing = (tokens != look.tokens) & (sure < jnp.inf)
        again = (state["seen"] == look.tokens[:, None]).all(-1).any(1) & may & changing.any(1)
        place = jnp.where(changing, sure, jnp.inf).argmin(1)[:, None]
        at = functools.partial(jnp.take_along_axis, indices=place, axis=1)
        never = jnp.concatenate([
            jnp.take_along_axis(state["given"], place[..., None], axis=2)[..., 0],
            jnp.where(at(first), self.mask_id, _NONE),
            jnp.where(_moves(look)[:, None], _NONE, jnp.array(self.edits)),
        ], axis=1)
        there = Prediction(jnp.take_along_axis(prediction.hidden, place[..., None], axis=1), prediction.head)
        (token, log_prob), = draws.outside(there, look.stream(1), [never[:, None]], positions=at(look.place),
                                           temperature=self.temperature)
        here = (jnp.arange(tokens.shape[1]) == place) & (again[:, None] & (log_prob > -jnp.inf))
        return jnp.where(here, token, tokens)

    def _rebuilt(self, look: Look, write, tokens, first) -> tuple[jax.Array, jax.Array]:
        """[B, W] each: the block with its edits done, and the first masks moved with it. What is given behind what
        moves is dropped from here: it stays where it is."""
        behind = ~look.editable & (jnp.cumsum(look.editable, axis=1) > 0)
        deleted = (write & (tokens == self.delete_id)) | (behind & _moves(look)[:, None])
        inserted = write & (tokens == self.insert_id)
        to = jax.vmap(places)(deleted, inserted)
        content = jnp.where(write & ~inserted, tokens, look.tokens)
        move = jax.vmap(moved, in_axes=(0, 0, None))
        return move(content, to, self.mask_id), move(first, to, False)

    def done(self, look: Look, state) -> jax.Array:
        del look
        return state["finished"]

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps
        return block_length + self.max_post_steps + 1


def _moves(look: Look) -> jax.Array:
    """[B] bool: whether what is to be written is one run, with nothing given inside."""
    begins = look.editable & ~jnp.pad(look.editable, ((0, 0), (1, 0)))[:, :-1]
    return begins.sum(1) <= 1
