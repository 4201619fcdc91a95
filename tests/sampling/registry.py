"""Every decoder of the library with the settings it is tested with. A new decoder belongs into `CASES`.

`test_invariances` fails where a subclass of `Decoder`, or a name of `mdlm_jax.sampling.registry`, is missing here.
Network and shapes are shared, so that a case costs few compiled programs.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import mdlm_jax.sampling
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.models import circuit
from mdlm_jax.models.circuit import Circuit, CircuitConfig
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.adjust_verified import AdjustVerified
from mdlm_jax.sampling.ancestral import Ancestral, LearnedScheduleAncestral
from mdlm_jax.sampling.assd import ASSD
from mdlm_jax.sampling.block_threshold import BlockThreshold
from mdlm_jax.sampling.codd import CoDD
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.copula import Copula
from mdlm_jax.sampling.credit import Credit
from mdlm_jax.sampling.d2f import D2F
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.draft_edit import DraftEdit
from mdlm_jax.sampling.dream import Dream
from mdlm_jax.sampling.entropy_bound import EntropyBound
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.free_dave import FreeDave
from mdlm_jax.sampling.hierarchy import Hierarchy
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.sampling.klass import KLASS
from mdlm_jax.sampling.levenshtein import Levenshtein
from mdlm_jax.sampling.lopa import LoPA
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.margin import Margin
from mdlm_jax.sampling.maria import MARIA
from mdlm_jax.sampling.p2 import P2
from mdlm_jax.sampling.prism import PRISM
from mdlm_jax.sampling.prophet import Prophet
from mdlm_jax.sampling.remdm import ReMDM, ReMDMCap, ReMDMConf, ReMDMLoop, ReMDMRescale
from mdlm_jax.sampling.saber import Saber
from mdlm_jax.sampling.slow_fast import SlowFast
from mdlm_jax.sampling.smoothing import Smoothed
from mdlm_jax.sampling.soft_parallel import SoftParallel
from mdlm_jax.sampling.threshold import Factor, Threshold
from mdlm_jax.sampling.wino import WINO

BASES = {ReMDM, ByConfidence}  # that are no decoders themselves
WITH_LAYER = {AdjustVerified, Smoothed}  # that need arrays of the network's width: see their own tests


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder and its call.

    Attributes:
      make: ``(vocab, mask) -> Decoder``.
      steps: for the whole canvas, a multiple of 6; None: the decoder takes as many as it needs.
      options: further ones of `decode`. With a block length caches are tested too, unless not ``cached``.
      numbers: name of a field -> (low, high), to be fuzzed.
      leaves_masks: as its reference does, for parity.
      network: block_causal, bidirectional, permutation, or scheduled, which gives a learned schedule as well.
      guided: whether it takes guidance.
    """

    make: Callable[[int, int], Decoder]
    steps: int | None = 6
    options: dict = dataclasses.field(default_factory=dict)
    numbers: dict = dataclasses.field(default_factory=dict)
    leaves_masks: bool = False
    network: str = "block_causal"
    cached: bool = True
    guided: bool = True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Opinion:
    """Stands for a `QualityHead` beside networks of any width: an uneven function of a token, its neighbour and what
    the network says there."""

    kind: str = dataclasses.field(metadata={"static": True})

    def logits(self, tokens, hidden=None, *, attention_mask=None, positions=None):
        del attention_mask
        said = 0.0 if hidden is None else 2.0 * jnp.sin(3.0 * hidden.astype(jnp.float32)).mean(-1)
        return jnp.sin(1.7 * tokens + 0.6 * jnp.roll(tokens, 1, axis=1) + 0.4 * positions) + said


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Before:
    """Stands for a `Twin` over any ids: an uneven function of the token before and the place."""

    columns: int = dataclasses.field(metadata={"static": True})
    start_id: int = dataclasses.field(default=0, metadata={"static": True})

    def check_length(self, length):
        pass

    def cache(self, rows, length):
        return jnp.zeros(rows)

    def begin(self, tokens, segment, places):
        return self.cache(*tokens.shape)

    def step(self, cache, before, segment, places, slots):
        ids = jnp.arange(self.columns)
        said = 2.0 * jnp.sin(1.3 * ids + 0.7 * before[..., None] * ids + places[..., None])
        return Prediction.from_logits(said), cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Left:
    """Stands for a `LeftReading`: an uneven function of the token and its place."""

    def run(self, call, columns):
        ids, place = jnp.arange(columns), jnp.arange(call.tokens.shape[1])[:, None]
        return Prediction.from_logits(jnp.cos(0.9 * ids * call.tokens[..., None] + place))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joined:
    """Stands for a `FusedHead` on networks of any width."""

    twin: Before
    bias = None

    def prediction(self, masked, before):
        said = jnp.sin(3.0 * masked.astype(jnp.float32)).mean(-1, keepdims=True) * jnp.arange(self.twin.columns)
        return Prediction(before + said, Head(bias=jnp.zeros(self.twin.columns)))


def loud(states: int, columns: int, seed: int = 2) -> Circuit:
    """A circuit that says something: fresh, without its silent state."""
    rng, config = np.random.default_rng(seed), CircuitConfig(states, columns)
    return Circuit(jax.tree.map(lambda leaf: jnp.asarray(1.5 * rng.standard_normal(leaf.shape), jnp.float32),
                                circuit.abstract(config)), config)


def table(vocab: int) -> jax.Array:
    """Stands for the embeddings of a network of width `WIDTH`."""
    return jax.random.normal(jax.random.key(9), (vocab, WIDTH))


def _process(mixing: float) -> Callable[[int, int], Process]:
    return lambda vocab, mask: Process(vocab, mask, mixing, Linear(1e-3))


LENGTH, WIDTH = 12, 16
TEMPERATURE = {"temperature": (0.0, 2.0)}
BLOCKS = {"block_length": 4}

CASES = {
    "ancestral": Case(lambda v, m: Ancestral(_process(0.0)(v, m)), options=BLOCKS, numbers=TEMPERATURE),
    "ancestral_reuse": Case(lambda v, m: Ancestral(_process(0.0)(v, m), reuse=True), steps=24),
    "ancestral_mixed": Case(lambda v, m: Ancestral(_process(0.3)(v, m)), numbers=TEMPERATURE),
    "learned_schedule": Case(lambda v, m: LearnedScheduleAncestral(_process(0.0)(v, m)), network="scheduled"),
    "first_hitting": Case(lambda v, m: FirstHitting(_process(0.0)(v, m)), steps=LENGTH, options=BLOCKS,
                          numbers=TEMPERATURE),
    **{f"first_hitting_{second}": Case(
        lambda v, m, second=second: FirstHitting(_process(0.0)(v, m), parallel=True, second=second), steps=6)
       for second in ("none", "extrapolate", "correct")},
    "remdm_cap": Case(lambda v, m: ReMDMCap(_process(0.0)(v, m)), steps=12, options=BLOCKS,
                      numbers={"eta": (0.0, 1.0)}),
    "remdm_rescale": Case(lambda v, m: ReMDMRescale(_process(0.0)(v, m)), numbers={"eta": (0.0, 1.0)}),
    "remdm_conf": Case(lambda v, m: ReMDMConf(_process(0.0)(v, m)), steps=24),
    "remdm_loop": Case(lambda v, m: ReMDMLoop(_process(0.0)(v, m)), steps=24,
                       numbers={"eta": (0.0, 1.0), "alpha_on": (0.1, 0.9)}),
    "p2_uniform": Case(lambda v, m: P2(_process(0.0)(v, m), planner="uniform")),
    "p2_self": Case(lambda v, m: P2(_process(0.0)(v, m)), numbers={"eta": (0.0, 3.0)}),
    "p2_self_even": Case(lambda v, m: P2(_process(0.0)(v, m), kappa="even"), options=BLOCKS,
                         numbers={"eta": (0.0, 3.0)}),
    "p2_trained": Case(lambda v, m: P2(_process(0.0)(v, m), "trained", quality=Opinion("planner")),
                       numbers={"eta": (0.0, 3.0)}),
    "prism": Case(lambda v, m: PRISM(Opinion("prism"), m, remask=2), numbers=TEMPERATURE, guided=False),
    "prism_confidence": Case(lambda v, m: PRISM(Opinion("prism"), m, order="confidence"), steps=24, guided=False),
    "low_confidence": Case(lambda v, m: LowConfidence(m, temperature=0.7), options=BLOCKS, numbers=TEMPERATURE),
    "low_confidence_random": Case(lambda v, m: LowConfidence(m, temperature=0.7, remasking="random")),
    "draft_edit": Case(lambda v, m: DraftEdit(m, 0.4, temperature=0.7), options=BLOCKS,
                       numbers=TEMPERATURE | {"mixing": (0.0, 0.9)}),
    "draft_edit_reference": Case(lambda v, m: DraftEdit(m, 0.4, reference=True), leaves_masks=True),
    "block_threshold": Case(lambda v, m: BlockThreshold(m, threshold=0.6), options=BLOCKS,
                            numbers=TEMPERATURE | {"threshold": (0.0, 1.0)}),
    "joint_threshold": Case(lambda v, m: JointThreshold(m, max_post_steps=3, penalty=1.0), None, BLOCKS,
                            numbers=TEMPERATURE | {"threshold": (0.0, 1.0), "edit_threshold": (0.0, 1.0)}),
    "joint_threshold_two": Case(lambda v, m: JointThreshold.mode("speedy", m, max_post_steps=3, reach=2),
                                None, BLOCKS, numbers={"edit_threshold": (0.0, 1.0)}),
    "soft_parallel": Case(lambda v, m: SoftParallel(m, table(v), 0.4, 0.7, max_post_steps=3), None, BLOCKS,
                          numbers=TEMPERATURE | {"threshold": (0.0, 1.0), "confident": (0.0, 1.0)}, guided=False),
    "soft_parallel_several": Case(lambda v, m: SoftParallel(m, table(v), 0.4, blend=3, prefix=False), None,
                                  guided=False, numbers={"threshold": (0.0, 1.0)}),
    "levenshtein": Case(lambda v, m: Levenshtein(m, v - 4, v - 3, max_post_steps=3), None, BLOCKS,
                        numbers=TEMPERATURE | {"threshold": (0.0, 1.0), "edit_threshold": (0.0, 1.0)}),
    "d2f": Case(lambda v, m: D2F(m, temperature=1.0, threshold=0.6, add=0.25, activate=0.75, ahead=1), None, BLOCKS,
                numbers={"threshold": (0.0, 1.0), "add": (0.0, 1.0), "activate": (0.0, 1.0)}),
    "d2f_far": Case(lambda v, m: D2F(m, temperature=1.0, threshold=0.3, add=0.0, ahead=4), None, BLOCKS,
                    numbers=TEMPERATURE),
    "low_confidence_reference": Case(lambda v, m: LowConfidence(m, reference=True), leaves_masks=True),
    "low_confidence_defer": Case(lambda v, m: LowConfidence(m, defer=(2, 3))),
    "low_confidence_top": Case(lambda v, m: LowConfidence(m, temperature=1.0, remasking="top"), numbers=TEMPERATURE),
    "margin": Case(lambda v, m: Margin(m, temperature=1.0), options=BLOCKS),
    "threshold": Case(lambda v, m: Threshold(m, temperature=1.0, threshold=0.6), options=BLOCKS, steps=12,
                      numbers={"threshold": (0.0, 1.0)}),
    "factor": Case(lambda v, m: Factor(m, temperature=1.0), options=BLOCKS, steps=12, numbers={"factor": (0.0, 5.0)}),
    "hierarchy": Case(lambda v, m: Hierarchy(m, temperature=1.0, threshold=0.8, low=0.4), options=BLOCKS, steps=12,
                      numbers={"threshold": (0.0, 1.0), "low": (0.0, 1.0)}),
    "credit": Case(lambda v, m: Credit(m, temperature=1.0, threshold=0.6), options=BLOCKS, steps=12,
                   numbers={"alpha": (0.0, 5.0), "gamma": (0.0, 5.0), "beta": (0.0, 1.0)}),
    **{f"entropy_bound_{order}": Case(
        lambda v, m, order=order: EntropyBound(m, temperature=1.0, gamma=0.5, order=order), options=BLOCKS, steps=12,
        numbers={"gamma": (0.0, 5.0)})
       for order in ("entropy", "confidence", "margin")},
    "klass": Case(lambda v, m: KLASS(m, temperature=1.0, threshold=0.5, kl_threshold=0.1), options=BLOCKS, steps=12,
                  numbers={"threshold": (0.0, 1.0), "kl_threshold": (0.0, 1.0)}),
    "saber": Case(lambda v, m: Saber(m, temperature=1.0), None, BLOCKS, numbers=TEMPERATURE),
    "slow_fast": Case(lambda v, m: SlowFast(m, temperature=1.0, threshold=0.6, exploration=2), None, BLOCKS,
                      numbers={"threshold": (0.0, 1.0), "reach_threshold": (0.0, 1.0), "spread": (0.0, 3.0)}),
    "prophet": Case(lambda v, m: Prophet(m, 1.0, early=1.5, middle=1.0, late=0.5), steps=12,
                    numbers={"early": (0.0, 3.0), "late": (0.0, 3.0)}),
    "lopa": Case(lambda v, m: LoPA(m, temperature=1.0, threshold=0.6, branches=2), options=BLOCKS, steps=12,
                 numbers={"threshold": (0.0, 1.0), "alpha": (0.0, 1.0), "lowest": (0.0, 1.0)}, cached=False),
    "wino": Case(lambda v, m: WINO(m, temperature=0.7, threshold=0.3), None, BLOCKS, cached=False,
                 numbers=TEMPERATURE | {"threshold": (0.0, 1.0), "keep": (0.0, 1.0), "share": (0.0, 1.0)}),
    "free_dave": Case(lambda v, m: FreeDave(m, drafts=2), options=BLOCKS, steps=12, cached=False),
    "assd": Case(lambda v, m: ASSD(m, 3), None, BLOCKS, TEMPERATURE, network="permutation", cached=False, guided=False),
    "assd_stale": Case(lambda v, m: ASSD(m, 4, fresh=False, top_p=0.9), None, numbers=TEMPERATURE,
                       network="permutation", cached=False, guided=False),
    "dream_origin": Case(lambda v, m: Dream(m, temperature=1.0, algorithm="origin")),
    "dream_maskgit_plus": Case(lambda v, m: Dream(m, temperature=0.7, top_p=0.9, algorithm="maskgit_plus")),
    "dream_topk_margin": Case(lambda v, m: Dream(m, temperature=1.0, algorithm="topk_margin")),
    "dream_entropy": Case(lambda v, m: Dream(m, temperature=1.0), options=BLOCKS, numbers=TEMPERATURE),
    "dream_entropy_noisy": Case(lambda v, m: Dream(m, temperature=0.7, alg_temp=0.5), numbers={"alg_temp": (0.0, 2.0)}),
    "adjust": Case(lambda v, m: Adjust(mask_id=m, tokens=1), None, BLOCKS, numbers=TEMPERATURE),
    "copula": Case(lambda v, m: Copula(_process(0.0)(v, m), Before(v), Left()), network="bidirectional", guided=False,
                   numbers=TEMPERATURE | {"exponent": (0.0, 2.0)}),
    "copula_prefix": Case(lambda v, m: Copula(_process(0.0)(v, m), Before(v), Left(), keeps="prefix"), options=BLOCKS,
                          network="bidirectional", guided=False, cached=False, numbers={"exponent": (0.0, 2.0)}),
    "maria": Case(lambda v, m: MARIA(Joined(Before(v)), m), None, BLOCKS, network="bidirectional", guided=False,
                  cached=False, numbers=TEMPERATURE),
    "codd": Case(lambda v, m: CoDD(loud(3, v), m, 3), None, BLOCKS, TEMPERATURE | {"max_masked": (0.0, 1.0)},
                 network="bidirectional", cached=False),
    "codd_all": Case(lambda v, m: CoDD(loud(2, v), m), None, network="bidirectional"),
    "dream_threshold": Case(lambda v, m: Dream(m, algorithm="confidence_threshold", threshold=0.6), steps=12),
}


def decoders() -> set[type]:
    """Every decoder class of `mdlm_jax.sampling`."""
    for module in pkgutil.iter_modules(mdlm_jax.sampling.__path__, "mdlm_jax.sampling."):
        importlib.import_module(module.name)
    found, new = set(), {Decoder}
    while new:
        new = {child for parent in new for child in parent.__subclasses__()} - found
        found |= {child for child in new if child.__module__.startswith("mdlm_jax.")}
    return found - BASES - WITH_LAYER


def scorable() -> list[str]:
    """Names of the cases that can be scored exactly."""
    return [name for name, case in CASES.items() if case.make(13, 11).scorable]
