"""DMax's soft parallel decoding (arXiv 2604.08302): tokens may be written again, and are fed as unsure as they are."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import enough, over_wanted
from mdlm_jax.core.prediction import Asked
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.core.reduction_chunk import suppressed_logits
from mdlm_jax.models.denoise import Call
from mdlm_jax.models.vocabulary import lookup
from mdlm_jax.sampling.block_threshold import CONFIDENCE, confidence
from mdlm_jax.sampling.confidence import fraction
from mdlm_jax.sampling.decoder import Decoder, Look, Move, Plan, check, decoder, static, take_best
from mdlm_jax.sampling.smoothing import scored_rows


@decoder
class SoftParallel(Decoder):
    """Writes masks it is sure of, one at least, and every step writes all of them afresh that it has written in the
    block, until it is sure of all or nothing changes. For networks of train.objective=dmax:1,1,0: others have not
    learned to doubt what they read.

    What has been written, x, is not fed as E[x]. With p the law of the forward that wrote it and K the ``blend`` ids x
    and the likeliest others,

        e = sum_(v in K) p_v E[v] + r E[mask],    r = 1 - sum_K p_v
        fed:  e (sum_K p_v |E[v]| + r |E[mask]|) / |e|

    A step draws v_l ~ p_l with probability c_l at the masks and at what the block's masks have become. Written are all
    of the latter, and of the masks with c_l >= ``threshold`` those left of every other mask (the published rule;
    ``prefix=False``: all of them), or else the first (the surest). The block is done when no mask is left and all
    c_l >= ``confident``, or no token has changed, or ``max_post_steps`` steps began without masks. What was given
    stays. Once the block is done its tokens are read as any, so the exact cache stays exact.

    Attributes:
      mask_id: the mask token.
      embedding: [V, D], E.
      threshold: the published one is 0.5 for mathematics, 0.65 for code; 0 writes the whole block at once.
      confident: c that all tokens need; 1 waits until nothing changes.
      blend: ids a written token is fed as, the published number 1; 0: the token itself alone, as any.
      prefix: whether masks are written from the left.
      max_post_steps: steps spent on writing again alone.
      temperature: of the draw; 0 takes the argmax. Above it tokens change with every draw, and a block mostly ends at
        ``max_post_steps``. ``top_p``, ``top_k`` as in `core.draws`; p is never cut.
    """

    mask_id: int = static()
    embedding: Asked = None
    threshold: float = 0.5
    confident: float = 0.9
    blend: int = static(1)
    prefix: bool = static(True)
    max_post_steps: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = static(0)
    head_budget: int = static(1 << 22)

    reads_steps = False

    def __post_init__(self):
        self._check_law()
        if self.embedding is None:
            raise ValueError("embedding=None: SoftParallel needs the network's table of embeddings; give "
                             "embedding=[V, D]")
        for name in ("threshold", "confident"):
            fraction(name, getattr(self, name))
        check("blend", self.blend, lambda k: k >= 0 and k == int(k), "must be a whole number of ids, 0 or more")
        check("max_post_steps", self.max_post_steps, lambda n: n >= 0, "must not be negative; 0 ends with the masks")

    def check(self, call: Plan) -> None:
        if call.contract == "causal":
            raise ValueError("decoder: SoftParallel writes tokens again by what follows them, which a causal network "
                             "never sees; take another")
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: tokens are fed by one law, and guidance has two; leave it "
                             "at 0")
        if call.columns and self.blend > call.columns - 1:
            raise ValueError(f"blend={self.blend}: the network tells {call.columns - 1} ids apart; take fewer")

    def begin(self, look: Look, hidden) -> dict[str, jax.Array]:
        """``own``: [B, W] bool, the masks of the block; ``fed``: [B, W, D], what is read where they are tokens;
        ``post``: [B], steps that began without masks; ``idle``: [B], whether the last one found nothing to do."""
        del hidden
        fed = jnp.zeros((*look.tokens.shape, self.embedding.shape[1]), self.embedding.dtype)
        return {"own": look.masked, "fed": fed, "post": jnp.zeros_like(look.step),
                "idle": jnp.zeros(look.step.shape, bool)}

    def inputs(self, call: Call, look: Look, state: dict[str, jax.Array]) -> Call:
        if not self.blend:
            return call
        width = look.tokens.shape[1]
        column = call.index - look.index[:, :1]
        at = jnp.clip(column, 0, width - 1)
        soft = state["own"] & (look.tokens != self.mask_id)
        soft = jnp.take_along_axis(soft, at, axis=1) & (column == at)
        plain = lookup(self.embedding, call.tokens, ("vocab", "embed"))
        fed = jnp.take_along_axis(state["fed"], at[..., None], axis=1)
        return dataclasses.replace(call, embeddings=jnp.where(soft[..., None], fed, plain))

    def update(self, prediction, look: Look, state):
        own = state["own"] & look.editable
        drawn = self.draw(prediction, look, ("sample", *CONFIDENCE), where=own)
        sure = confidence(drawn, self.temperature)
        drafts = self.drafts(sure, look.masked & own)
        write = drafts | (own & ~look.masked)
        changed = (write & (drawn.sample != look.tokens)).any(1)
        settled = (~own | (sure >= self.confident)).all(1)
        left = (look.masked & own & ~drafts).any(1)
        state = state | {"post": state["post"] + ~look.masked.any(1), "idle": ~left & (settled | ~changed)}
        if self.blend:
            state["fed"] = self.blended(prediction, drawn.sample, write).astype(state["fed"].dtype)
        return Move(write, drawn.sample), state

    def drafts(self, sure: jax.Array, masked: jax.Array) -> jax.Array:
        """[B, W] bool: the masks to write."""
        high = masked & (sure >= self.threshold)
        if not self.prefix:
            return high | take_best(sure, masked, jnp.ones(len(masked), jnp.int32))
        return masked & ((jnp.cumsum(masked & ~high, axis=1) == 0) | (jnp.cumsum(masked, axis=1) == 1))

    def blended(self, prediction, tokens: jax.Array, where: jax.Array) -> jax.Array:
        """[B, W, D] float32: what the ``tokens`` [B, W] are fed as; 0 elsewhere."""
        table, size = self.embedding, len(scored_rows(self.embedding, prediction))
        wide = jnp.promote_types(table.dtype, jnp.float32)

        def mixed(pieces):
            hidden, written = pieces
            p = jax.nn.softmax(suppressed_logits(prediction.head, hidden, self.mask_id))
            first = jnp.where(jnp.arange(size) == written[..., None], 2.0, p)  # more than any probability
            ids = jax.lax.top_k(first, self.blend)[1]
            p = jnp.take_along_axis(p, ids, axis=-1)
            p = jnp.concatenate([p, jnp.maximum(1.0 - p.sum(-1, keepdims=True), 0.0)], -1)
            mask = jnp.broadcast_to(jnp.int32(self.mask_id), (*ids.shape[:-1], 1))
            each = table[jnp.concatenate([ids, mask], -1)].astype(wide)
            found = jnp.einsum("bck,bckd->bcd", p, each)
            norm = (p * jnp.linalg.norm(each, axis=-1)).sum(-1, keepdims=True)
            return found * (norm / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12))

        rows, width = tokens.shape
        chunk = min(width, enough(rows), chunk_length(rows, prediction.logits_held, self.head_budget))
        return over_wanted(mixed, (prediction.hidden, tokens), where, chunk)

    def done(self, look: Look, state) -> jax.Array:
        return state["idle"] | (~look.masked.any(1) & (state["post"] >= self.max_post_steps))

    def limit(self, steps: jax.Array, block_length: int) -> jax.Array | int:
        del steps
        return block_length + self.max_post_steps
