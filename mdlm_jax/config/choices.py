"""Values that are a name and its numbers, as in ``clipped:10``: the registries, and how one is read."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from mdlm_jax.errors import ConfigError, require


class Choice(NamedTuple):
    """One name that a field takes, with its numbers; `--help` prints form and meaning, errors the example."""

    form: str
    example: str
    meaning: str


def _choices(*rows: tuple[str, str, str]) -> dict[str, Choice]:
    return {form.partition(":")[0]: Choice(form, example, meaning) for form, example, meaning in rows}


SCHEDULES = _choices(
    ("linear", "linear", "a = 1 - t; MDLM calls it log-linear"),
    ("cosine", "cosine", "a = cos(pi t / 2)"),
    ("cosine_mask", "cosine_mask", "a = 1 - sin(pi t / 2), the cosine of MaskGIT and MD4"),
    ("polynomial:POWER", "polynomial:2", "a = 1 - t^POWER"),
    ("geometric:SIGMA_MIN,SIGMA_MAX", "geometric:1e-3,20", "-log alpha = SIGMA_MIN^(1-t) SIGMA_MAX^t (SEDD), no eps"),
)
OBJECTIVES = _choices(
    ("nelbo", "nelbo", "the bound: count for masks alone (process.mixing=0), else continuous"),
    ("count", "count", "the masked bound by the number of masks, exact at both ends"),
    ("continuous", "continuous", "the continuous-time bound, for any process"),
    ("discrete:T", "discrete:100", "the bound of a process of T steps, for any process"),
    ("genmd4:W", "genmd4:1", "the masked bound with a learned schedule a token, alpha = 1 - t^w with w = W at first"),
    ("autoregressive", "autoregressive", "next-token cross-entropy, exact; with model.attention=causal"),
    ("block", "block", "masked blocks of model.block_length, each given the clean ones before it; with "
     "model.attention=block_causal"),
    ("any_order", "any_order", "each token given those before it in a random order; with model.attention=permutation"),
    ("any_subset:LOW,HIGH", "any_subset:0.01,0.1", "each token given those left of it and a random prompt, LOW to HIGH "
     "of the row wherever it stands (AS-ARM); with model.attention=permutation"),
    ("joint:PASSES", "joint:3", "ADJUST's layer beside the network of train.init_from, which stays, unrolled over "
     "PASSES tokens; with data.source=trajectories:DIR"),
    ("planner:LAYERS", "planner:2", "P2's planner of LAYERS layers beside the network of train.init_from, which stays: "
     "which tokens of rows that the network filled are right"),
    ("prism:REVEALED", "prism:1", "PRISM's head beside the network of train.init_from, which stays: which of REVEALED "
     "tokens that it put into a noisy row are right"),
    ("maria", "maria", "MARIA's head on the hidden states of the networks of train.init_from and train.twin, which "
     "both stay: each masked token given the others and all before it"),
    ("sdtt:STEPS", "sdtt:64", "one step of the network for two of its teacher, the network of train.init_from, whose "
     "steps are STEPS in all; no bound"),
    ("duo:STEPS", "duo:64", "Duo's consistency distillation: the network at t says what its teacher, the network of "
     "train.init_from, says at t - 1/STEPS under the same noise; with process.mixing=1; no bound"),
    ("di4c:STEPS,LATENTS,DELTA,POWER", "di4c:1024,16,0.1,1", "a mixture over a latent (model.latent), of which a row "
     "sees LATENTS, for the joint law that its teacher, the network of train.init_from, has in STEPS steps; token by "
     "token at times below DELTA; with the data's own law alpha^POWER times; no bound"),
    ("codd:STATES", "codd:16", "CoDD's circuit, a hidden Markov model of STATES states, beside the network of "
     "train.init_from, which stays: the joint law of what is masked"),
    ("draft_edit:RATE,WEIGHT,TURNS", "draft_edit:0.1,1,2", "masks to tokens and, with WEIGHT, wrong tokens to right "
     "ones: a share RATE of random tokens, then the network's own drafts, TURNS forward passes; no bound"),
    ("dparallel:BLOCK,BETA,T", "dparallel:32,2,0.5", "dParallel: half of one block of BLOCK masked, all behind it too, "
     "and BETA times the entropy at temperature T where a masked token is already guessed right; best with "
     "data.source=trajectories:DIR; no bound"),
    ("dmax:MASKED,OWN,T", "dmax:1,1,0", "DMax: with MASKED the masked loss, with OWN that of rows where the network's "
     "own prediction at temperature T (0: the likeliest) stands in place of each mask; no bound"),
    ("levenshtein:WEIGHT,TURNS", "levenshtein:1,2", "as block, and with WEIGHT the edits (a token, delete, insert) "
     "that lead to the text from the masks, then from what the network's own edits made, TURNS forward passes; with "
     "two more columns of model.head_size; no bound"),
)
DIVERGENCES = _choices(
    ("reverse_kl", "reverse_kl", "KL(network || teacher): where the teacher has little the network has none"),
    ("forward_kl", "forward_kl", "KL(teacher || network): the network has some wherever the teacher has"),
)
LR_SCHEDULES = _choices(
    ("cosine", "cosine", "after the warm-up a cosine to a tenth"),
    ("constant", "constant", "after the warm-up no change"),
    ("linear", "linear", "after the warm-up linearly to zero"),
    ("wsd:SHARE", "wsd:0.1", "constant, and linearly to zero in the last SHARE of all steps"),
)
OPTIMIZERS = _choices(
    ("adamw", "adamw", "Adam with decoupled weight decay"),
    ("lion", "lion", "sign of the momentum; a tenth of AdamW's learning rate is usual"),
    ("muon", "muon", "orthogonalised momentum for the matrices of layers, AdamW for the rest; AdamW's learning rate"),
)
TIME_SAMPLINGS = _choices(
    ("auto", "auto", "antithetic where the rows of a device make pairs, else stratified"),
    ("iid", "iid", "independent levels"),
    ("stratified", "stratified", "one level in each of batch_size equal parts"),
    ("antithetic", "antithetic", "stratified pairs of u and 1 - u"),
)
LEVEL_LAWS = _choices(
    ("uniform", "uniform", "every noise level alike"),
    ("cosine", "cosine", "heavy noise more often, as MaskGIT"),
    ("band:LOW,HIGH", "band:0.3,0.8", "levels between the two only; no bound"),
    ("fixed:RATIO", "fixed:0.15", "one level, as BERT; no bound"),
)
WEIGHTINGS = _choices(
    ("elbo", "elbo", "the bound's own weight"),
    ("constant", "constant", "every corrupted token counts alike; no bound"),
    ("power:P", "power:0.5", "level^-P; no bound"),
    ("clipped:MAX", "clipped:10", "1 / level, but at most MAX; with process.family=gidd the bound's own weight of each "
     "token, but at most MAX; no bound"),
    ("dynamic", "dynamic", "GIDD's, with process.family=gidd: masks 2, wrong tokens 1, right ones little; no bound"),
)
DETOKENIZERS = _choices(
    ("lm1b", "lm1b", "One Billion Words"),
    ("wikitext", "wikitext", "WikiText-2 and -103"),
    ("ptb", "ptb", "the Penn Treebank as Mikolov cut it"),
    ("lambada", "lambada", "LAMBADA"),
    ("ag_news", "ag_news", "AG News: wikitext, then lm1b"),
    ("scientific_papers", "scientific_papers", "articles of arXiv and PubMed: wikitext, then lm1b"),
)
CHAT_TEMPLATES = _choices(
    ("chatml", "chatml", "<|im_start|>ROLE, a line, what is said, <|im_end|> (Qwen, Dream)"),
    ("llama3", "llama3", "<|start_header_id|>ROLE<|end_header_id|>, an empty line, what is said, <|eot_id|>"),
    ("llada", "llada", "the same behind <|startoftext|>"),
    ("llada2", "llada2", "<role>HUMAN</role> or SYSTEM or ASSISTANT, what is said, <|role_end|>"),
    ("plain", "plain", "ROLE: what is said, and a line end"),
)


def parse_spec(field: str, spec: str, choices: Mapping[str, Choice]) -> tuple[str, tuple[float, ...]]:
    """Splits ``"name"`` or ``"name:1.5,2"`` into its name and its numbers, as many as the name's example has.

    Examples:
      >>> parse_spec("train.weighting", "clipped:10", WEIGHTINGS)
      ('clipped', (10.0,))
    """
    name, colon, tail = spec.partition(":")
    require(name in choices, field, spec, f"choose one of {', '.join(choices)}")
    try:
        numbers = tuple(float(part) for part in tail.split(",")) if colon else ()
    except ValueError:
        raise ConfigError(f"{field}={spec!r}: what follows the colon must be numbers, as in '{name}:0.5'") from None
    require(all(math.isfinite(n) for n in numbers), field, spec, "its numbers must be finite")
    example = choices[name].example
    count = len(example.split(",")) if ":" in example else 0
    require(len(numbers) == count, field, spec, f"takes {count or 'no'} number(s), as in '{example}'")
    return name, numbers


def require_seed(field: str, seed: int) -> None:
    require(0 <= seed < 2**32, field, seed, "must lie in [0, 2^32)")
