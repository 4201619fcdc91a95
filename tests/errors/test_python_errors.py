"""Mistakes in Python, what is cheap to provoke: each message says the argument, its value and the remedy.

The key of a case is a part of its message: ``name=value`` or ``name: ``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.core import categorical, gidd, levels, schedules, truncation, weights
from mdlm_jax.core.process import Process
from mdlm_jax.data import chat, prefetch
from mdlm_jax.data.languages import registry as languages
from mdlm_jax.data.languages.copy import Copy
from mdlm_jax.data.languages.enumerated import Enumerated
from mdlm_jax.data.languages.hidden_markov import HiddenMarkov
from mdlm_jax.evaluation import baselines, entropy, mauve, scoring
from mdlm_jax.models import adapt
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.quality import QualityConfig
from mdlm_jax.sampling import caching, canvas, grid, registry
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.tasks import registry as tasks
from mdlm_jax.training import keeping, metrics
from tests.errors.form import faults

NETWORK = TransformerConfig(9, 9, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8)
CAUSAL = dataclasses.replace(NETWORK, attention="causal")
KEY = jax.random.key(0)
TURNS = [{"role": "user", "content": "x"}]


def decoder(name: str, **numbers):
    return registry.make(name, process=Process(4, 3), numbers=numbers, embedding=jnp.zeros((4, 2)))


CASES = {
    "logits: of shape (2, 0)": lambda: categorical.categorical(KEY, jnp.zeros((2, 0))),
    "logits: are int32": lambda: categorical.categorical(KEY, jnp.zeros(2, jnp.int32)),
    "p: has shape (3,)": lambda: categorical.bernoulli(KEY, jnp.zeros(3), (2,)),
    "gamma=3": lambda: gidd.GiddSchedule(gamma=3),
    "low=0.5, high=0.2": lambda: levels.Uniform(0.5, 0.2),
    "level=0": lambda: levels.Fixed(0),
    "coupling='odd'": lambda: levels.unit_levels(KEY, 2, "odd"),
    "level law 'odd'": lambda: levels.from_spec("odd"),
    "mixing=2": lambda: Process(4, 3, 2),
    "mixing=0.0 without a mask": lambda: Process(4, None),
    "power=0": lambda: schedules.Polynomial(power=0),
    "sigma_min=0.0": lambda: schedules.Geometric(sigma_min=0.0),
    "temperature=0": lambda: truncation.temperature(jnp.zeros(3), 0),
    "power=99": lambda: weights.Power(99),
    "maximum=0": lambda: weights.Clipped(0),
    "turn: a turn has role None": lambda: list(chat.exchanges([{}], "plain", "turn")),
    "turn: nobody answers": lambda: list(chat.exchanges(TURNS, "plain", "turn")),
    "turn: must be a list": lambda: list(chat.exchanges(3, "plain", "turn")),
    "template='chat'": lambda: chat.prompt([], "chat", None),
    "depth=0": lambda: prefetch.prefetch(None, 0, depth=0),
    "permutation: ": lambda: dataclasses.replace(Copy.random(2), permutation=[0, 0]),
    "noise=2": lambda: Copy.random(2, noise=2),
    "num=-1, length=3": lambda: languages.make("hmm").sample(np.random.default_rng(0), -1, 3),
    "initial: ": lambda: HiddenMarkov(np.ones(2), np.full((2, 2), 0.5), np.full((2, 2), 0.5)),
    "jump=0": lambda: languages.make("hmm:jump=0"),
    "rows: 2": lambda: Enumerated(np.zeros((2, 3), int), np.full(2, 0.5), 2),
    "language 'hmm:states=2,states=3'": lambda: languages.make("hmm:states=2,states=3"),
    "language 'copy:noise=2'": lambda: languages.make("copy:noise=2"),
    "valid: is empty": lambda: baselines.xz_bits(b""),
    "tokens: hold ids": lambda: entropy.unigram_entropy(np.array([9]), 3),
    "clusters=99": lambda: mauve.mauve(np.random.rand(9, 2), np.random.rand(9, 2), clusters=99),
    "p: adds up to 0.5": lambda: scoring.sampled_tv(np.zeros((1, 1)), np.zeros((1, 1)), np.array([0.5])),
    "dtype='int8'": lambda: mdlm_jax.load("x", dtype="int8"),
    "mask_column=True": lambda: adapt.opened(CAUSAL, mask_token=False, mask_column=True),
    "multiple=0": lambda: adapt.opened(CAUSAL, multiple=0),
    "attention='bidirectional': only a gradual": lambda: adapt.finished(NETWORK),
    "kind='odd'": lambda: QualityConfig(NETWORK, "odd"),
    "layers=0": lambda: QualityConfig(NETWORK, "prism", 0),
    "cache='odd'": lambda: caching.parse("odd"),
    "cache='none:3'": lambda: caching.parse("none:3"),
    "row 0: has nothing": lambda: canvas.canvas([[1]], [[False]]),
    "segment: ": lambda: canvas.canvas([[1]], [[True]], segment=[[0]]),
    "grid='odd'": lambda: grid.times("odd", 2),
    "grid: has shape": lambda: grid.times([1.0, 0.0], 2),
    "grid: times must": lambda: grid.times([1.0, 1.0, 0.0], 2),
    "threshold=2": lambda: decoder("threshold", threshold=2.0),
    "temperature=-1": lambda: decoder("ancestral", temperature=-1.0),
    "algorithm='odd'": lambda: decoder("dream", algorithm="odd"),
    "order='odd'": lambda: decoder("entropy_bound", order="odd"),
    "second='odd'": lambda: decoder("first_hitting", second="odd"),
    "temperature=1.0: must be 0": lambda: decoder("free_dave", temperature=1.0),
    "mode='odd'": lambda: JointThreshold.mode("odd", 3),
    "remasking='odd'": lambda: decoder("low_confidence", remasking="odd"),
    "planner='odd'": lambda: decoder("p2", planner="odd"),
    "decoder='odd'": lambda: decoder("odd"),
    "gsm8k_twice: ": lambda: tasks.TASKS["gsm8k_twice"].prompt({"question": "x"}, [{}]),
    "task match: ": lambda: tasks.TASKS["match"].make(None, 1),
    "train.keep_checkpoints=0": lambda: keeping.Policy(0),
    "loss='x'": lambda: metrics._number("loss", "x"),
}


@pytest.mark.parametrize("said", CASES)
def test_the_message_says_the_argument_its_value_and_the_remedy(said):
    with pytest.raises((ValueError, TypeError)) as caught:
        CASES[said]()
    assert said in str(caught.value) and not faults(str(caught.value)), str(caught.value)
