"""Log-likelihoods of answers, from text or tokens: what `LanguageModel.log_likelihood` does."""

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation import answers
from mdlm_jax.generation import options as settings
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.options import Options, Sampler, is_whole
from mdlm_jax.sampling.rows import Row


def log_likelihood(model, prompts, completions, *, draws: int = 128, guidance: float = 0.0, **keywords):
    """`evaluation.answers.Likelihood` of each pair; see `LanguageModel.log_likelihood`."""
    options, numbers = settings.split(keywords)
    settings.check_guidance(guidance)
    unknown = [*numbers, *(set(keywords) - {"seed", "row_ids", "batch_size", "max_length", "special"})]
    if unknown:
        raise ConfigError(f"{unknown[0]}: is no option of log_likelihood; it has draws, guidance, seed, row_ids, "
                          "batch_size, max_length and special")
    if not is_whole(draws) or draws < answers.GROUPS or draws % answers.GROUPS:
        raise ConfigError(f"draws={draws!r}: must be a multiple of {answers.GROUPS}, whose spread gives the error")
    sampler = settings.sampler(model, options, {})
    if not sampler.process.masked_only:
        raise ConfigError(f"process.mixing={sampler.process.mixing}: the bound by counts is for masks alone; "
                          "evaluation.likelihood measures whole rows of mixed noise")
    rows = _rows(model, sampler, prompts, completions, options, guidance)
    ruler = answers.Ruler(sampler.denoise, sampler.params, sampler.process, guidance)
    if guidance and sampler.denoise.contract != "bidirectional":
        raise ConfigError(f"guidance={guidance}: masks the prompt, which a {sampler.denoise.contract} network reads as "
                          "text; leave it at 0")
    found = answers.log_likelihood(ruler, rows, draws=draws, seed=options.seed, batch_size=options.batch_size,
                                   mesh=model.mesh)
    if given.is_single(prompts) and given.is_single(completions):
        return answers.Likelihood(*(values[0] for values in found))
    return found


def _rows(model, sampler: Sampler, prompts, completions, options: Options, guidance: float) -> list[Row]:
    single = given.is_single(completions)
    completions = [completions] if single else given.listed("answers", completions)
    prompts = [prompts] * len(completions) if given.is_single(prompts) else given.listed("prompts", prompts)
    if not completions or len(prompts) != len(completions):
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
                                 f"guidance={guidance} guides towards a prompt"))
        tokens = np.concatenate([prompt, answer])
        what = f"{len(prompt)} tokens and an answer of {len(answer)}"
        given.check_length(names[0], what, len(tokens), model, options)
        rows.append(Row(tokens, np.arange(len(tokens)) >= len(prompt), int(row_ids[i])))
    return rows
