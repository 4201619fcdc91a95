"""Exact log-probabilities of filled rows: what `LanguageModel.score` does."""

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.mixture import one_step_log_prob
from mdlm_jax.generation import generate
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.generate import Job
from mdlm_jax.generation.options import is_whole
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.rows import Row

_PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # a draw from the network's own law


def score(model, texts, rows, *, hole: str = "<mask>", latents: int | None = None, **keywords) -> np.ndarray | float:
    """See `LanguageModel.score`."""
    alone = given.is_single(rows)
    several = [rows] if alone else given.listed("rows", rows)
    texts = [texts] * len(several) if given.is_single(texts) else given.listed("texts", texts)
    if not several or len(texts) != len(several):
        raise ConfigError(f"rows: {len(several)} for {len(texts)} texts; give one for each, or one text")
    job = generate.infill_job(model, texts, hole, **keywords)
    names = ["row"] if alone else [f"rows[{i}]" for i in range(len(several))]
    finished = [_finished(name, one, row, job) for name, one, row in zip(names, several, job.rows, strict=True)]
    if model.config.latent:
        found = _of_mixture(job, finished, 1024 if latents is None else latents)
    elif latents is not None:
        raise ConfigError(f"latents={latents!r}: is for networks that read a latent; leave it out")
    else:
        found = generate.log_probs(job, finished)
    return float(found[0]) if alone else found


def _finished(name: str, one, row: Row, job: Job) -> np.ndarray:
    """Its ids, int32 [n], which differ from the row with holes in holes alone."""
    ids = given.encode(name, one, job.model.tokenizer, job.options.special)
    given.check_ids(name, ids, job.model, job.sampler.mask_id)
    if len(ids) != len(row):
        raise ConfigError(f"{name}: has {len(ids)} tokens, and its text {len(row)}; give token ids, such as the row of "
                          "what infill returned")
    elsewhere = ~row.editable & (ids != row.tokens)
    if elsewhere.any():
        place = int(elsewhere.argmax())
        raise ConfigError(f"{name}: has the id {ids[place]} at place {place}, where its text has no hole but "
                          f"{row.tokens[place]}; give a filling of this text")
    return ids


def _of_mixture(job: Job, finished: list[np.ndarray], latents: int) -> np.ndarray:
    """Of one step, each text with all its rows at once."""
    s, options = job.sampler, job.options
    if not is_whole(latents) or latents < 1:
        raise ConfigError(f"latents={latents!r}: must be a whole number of at least 1")
    if set(job.each) != {1} or s.block_length:
        raise ConfigError(f"steps={options.steps}: the network reads a latent that every step draws, and the law is "
                          "known of one step over the whole row; set steps=1 and no block_length")
    if not isinstance(s.decoder, (Ancestral, LowConfidence)) or not s.process.masked_only:
        raise ConfigError(f"decoder: {type(s.decoder).__name__} is not scored on a network that reads a latent; take "
                          "ancestral or low_confidence, on masks")
    for name, value in _PLAIN.items() | {("guidance", 0.0)}:
        found = getattr(options if name == "guidance" else s.decoder, name)
        if found != value:
            raise ConfigError(f"{name}={found}: of a network that reads a latent the law is known at {value}; set it")
    alike: dict[tuple, list[int]] = {}
    for i, row in enumerate(job.rows):
        if s.denoise.timed and not row.editable.all():
            raise ConfigError(f"texts[{i}]: has given tokens, and the network reads a noise level; give holes alone")
        alike.setdefault((row.tokens.tobytes(), row.condition), []).append(i)
    scores = np.full(len(finished), -np.inf)
    beyond = [(finished[i][row.editable] >= s.denoise.columns).any() for i, row in enumerate(job.rows)]
    for several in alike.values():
        row, some = job.rows[several[0]], [i for i in several if not beyond[i]]  # what no column says is never written
        if not some:
            continue
        one = canvas([row.tokens], [row.editable], condition=None if row.condition is None else [row.condition])
        scores[some] = one_step_log_prob(s.denoise, s.params, one, np.stack([finished[i] for i in some]),
                                         mask_id=s.mask_id, latents=latents, bias=s.bias)
    return scores
