"""Log-likelihoods of answers, from text or tokens: what `LanguageModel.log_likelihood` does."""

import dataclasses

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation import answers, greedy
from mdlm_jax.generation import options as settings
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.options import Options, Sampler, is_number, is_whole
from mdlm_jax.sampling.rows import Row

_DRAWS = {"bound": 128, "any_order": 8}  # unless told otherwise
_OTHER_LAWS = {"fused": "maria", "circuit": "codd"}  # fields of a model, and the objective and decoder of each
_WITH_ERROR = {"bound": 1024, "any_order": 64}


def log_likelihood(model, prompts, completions, *, method: str = "bound", draws: int | None = None,
                   error: float | None = None, guidance: float = 0.0, progress=None, **keywords):
    """`evaluation.answers.Likelihood` of each pair; see `LanguageModel.log_likelihood`."""
    draws = _checked_draws(method, draws, error)
    ruler, rows, options = _prepared(model, prompts, completions, guidance, keywords,
                                     ("method", "draws", "error", "guidance", "seed", "row_ids", "progress"))
    found = answers.log_likelihood(ruler, rows, method=method, draws=draws, error=error, seed=options.seed,
                                   batch_size=options.batch_size, mesh=model.mesh, progress=progress)
    if given.is_single(prompts) and given.is_single(completions):
        return answers.Likelihood(*(values[0] for values in found))
    return found


def greedy_match(model, prompts, completions, *, guidance: float = 0.0, **keywords) -> np.ndarray:
    """See `LanguageModel.greedy_match`."""
    ruler, rows, options = _prepared(model, prompts, completions, guidance, keywords, ("guidance",))
    found = greedy.greedy_match(ruler, rows, batch_size=options.batch_size, mesh=model.mesh)
    return found[0] if given.is_single(prompts) and given.is_single(completions) else found


def _prepared(model, prompts, completions, guidance: float, keywords: dict, named: tuple[str, ...]):
    """What is measured with, the rows, and the options; ``named``: those that the caller has beside the usual."""
    options, numbers = settings.split(keywords)
    settings.check_guidance(guidance)
    known = (*named, "batch_size", "max_length", "special")
    unknown = [*numbers, *(set(keywords) - set(known))]
    if unknown:
        raise ConfigError(f"{unknown[0]}: is no option here; there are {', '.join(known)}")
    if model.config.latent:
        raise ConfigError(f"latent={model.config.latent}: the network is a mixture over latents, which is not "
                          "summed over here; take score with steps=1, the law of one step")
    for name, kind in _OTHER_LAWS.items():
        if getattr(model, name) is not None:
            raise ConfigError(f"{name}: what a run of {kind} learned makes another law, which is not measured here; "
                              f"take score with decoder={kind!r}, or the network alone, by dataclasses.replace(model, "
                              f"{name}=None)")
    sampler = settings.sampler(model, dataclasses.replace(options, cache="none"), {})
    if not sampler.process.masked_only:
        raise ConfigError(f"process.mixing={sampler.process.mixing}: the bound by counts is for masks alone; "
                          "use evaluation.likelihood, which measures whole rows of mixed noise")
    rows = _rows(model, sampler, prompts, completions, options, guidance)
    if guidance and sampler.denoise.contract != "bidirectional":
        raise ConfigError(f"guidance={guidance}: masks the prompt, which a {sampler.denoise.contract} network reads as "
                          "text; leave it at 0")
    return answers.Ruler(sampler.denoise, sampler.params, sampler.process, guidance), rows, options


def _checked_draws(method: str, draws: int | None, error: float | None) -> int:
    """How many at most; ConfigError for what the method does not take."""
    if method not in answers.METHODS:
        raise ConfigError(f"method={method!r}: choose one of {', '.join(answers.METHODS)}")
    if method == "chain_rule":
        for name, value in (("draws", draws), ("error", error)):
            if value is not None:
                raise ConfigError(f"{name}={value!r}: the chain rule has no noise; leave it out")
        return 1
    if error is not None and not (is_number(error) and error > 0):
        raise ConfigError(f"error={error!r}: must be a positive number of nats")
    if draws is None:
        return (_DRAWS if error is None else _WITH_ERROR)[method]
    if method == "any_order" and not (is_whole(draws) and draws >= 2):
        raise ConfigError(f"draws={draws!r}: must be at least 2 orders: their spread is the standard error")
    if method == "bound" and not (is_whole(draws) and draws >= answers.GROUPS and draws % answers.GROUPS == 0):
        raise ConfigError(f"draws={draws!r}: must be a positive multiple of {answers.GROUPS}, as {answers.GROUPS} or "
                          f"{4 * answers.GROUPS}: the spread of {answers.GROUPS} groups of draws is the standard error")
    return draws


def _rows(model, sampler: Sampler, prompts, completions, options: Options, guidance: float) -> list[Row]:
    single = given.is_single(completions)
    completions = [completions] if single else given.listed("answers", completions)
    prompts = [prompts] * len(completions) if given.is_single(prompts) else given.listed("prompts", prompts)
    if not completions:
        raise ConfigError("answers: there are none; give at least one")
    if len(prompts) != len(completions):
        raise ConfigError(f"answers: {len(completions)} for {len(prompts)} prompts; give one for each, or one prompt")
    row_ids = range(len(prompts)) if options.row_ids is None else list(options.row_ids)
    if len(row_ids) != len(prompts):
        raise ConfigError(f"row_ids: {len(row_ids)} for {len(prompts)} pairs; give one for each")
    rows = []
    for i, pair in enumerate(zip(prompts, completions, strict=True)):
        names = (f"prompts[{i}]", f"answers[{i}]")
        prompt, answer = (given.encode(name, one, model.tokenizer, options.special)
                          for name, one in zip(names, pair, strict=True))
        for name, ids in zip(names, (prompt, answer), strict=True):
            given.check_ids(name, ids, model, sampler.mask_id)
        if not len(answer):
            raise ConfigError(f"answers[{i}]: is empty; there is nothing to measure")
        if not len(prompt) and (sampler.blind or guidance):
            raise ConfigError(f"prompts[{i}]: is empty, and "
                              + ("this network scores a token from the one before it" if sampler.blind else
                                 f"guidance={guidance} guides towards a prompt") + "; give a token at least")
        tokens = np.concatenate([prompt, answer])
        what = f"{len(prompt)} tokens and an answer of {len(answer)}"
        given.check_length(names[0], what, len(tokens), model, options)
        rows.append(Row(tokens, np.arange(len(tokens)) >= len(prompt), int(row_ids[i])))
    return rows
