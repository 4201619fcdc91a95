"""Options that a decoder would not read are refused by name, when the call is made and not at its first step."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models.circuit import Circuit, CircuitConfig
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser, Foreign
from mdlm_jax.models.fused import FusedHead
from mdlm_jax.models.joint import JointSampler
from mdlm_jax.models.quality import QualityConfig, QualityHead
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling import registry
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.dream import Dream
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.sampling.loop import stream
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.p2 import P2

VOCAB, MASK = 6, 5
PROCESS = Process(VOCAB, MASK)
PLAIN = Foreign(lambda params, tokens, time: Prediction.from_logits(jnp.zeros((*tokens.shape, VOCAB))), timed=False)
BLOCKS = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8, attention="block_causal",
                           block_length=4)
LAYER = JointSampler({}, jnp.zeros((VOCAB, 8)), BLOCKS, 3)  # never read: what is refused is refused before
TWIN = Twin({}, dataclasses.replace(BLOCKS, attention="causal", block_length=1, logit_shift=True), MASK)
HEAD = QualityHead({}, jnp.zeros((VOCAB, 8)), QualityConfig(BLOCKS, "prism"))
CIRCUIT = Circuit({}, CircuitConfig(2, VOCAB))


class Ordered(Foreign):
    """Of any order, as far as a decoder asks before its first step."""

    contract = "permutation"


ORDERED = Ordered(PLAIN.function, timed=False)


def asked(decoder, model=PLAIN, **options):
    return stream(model, {}, blank(MASK, 1, 9, np.array([1])), decoder, **{"steps": 8, **options})


@pytest.mark.parametrize("name", registry.DECODERS)
def test_every_decoder_takes_a_grid_or_refuses_it(name):
    decoder = registry.make(name, process=PROCESS, numbers={}, joint=LAYER, quality=HEAD, circuit=CIRCUIT,
                            embedding=LAYER.table, delete_id=0, insert_id=1, twin=TWIN, causal=LeftReading({}, BLOCKS),
                            fused=FusedHead({}, TWIN))
    steps = 8 if decoder.reads_steps else None
    blocks = {"block_length": 8} if decoder.ahead else {}
    blocks |= {"model": ORDERED} if decoder.ordered else {}
    asked(decoder, steps=steps, **blocks)
    assert decoder.reads_grid == (name in {"ancestral", "p2", "dream", "copula"} or name.startswith("remdm"))
    if decoder.reads_grid:
        asked(decoder, steps=steps, grid="cosine")
    else:
        with pytest.raises(ValueError, match=f"grid='cosine': {type(decoder).__name__} does not go by times"):
            asked(decoder, steps=steps, grid="cosine", **blocks)


@pytest.mark.parametrize(("decoder", "options", "message"), [
    (P2(PROCESS, kappa="even"), {"grid": "cosine"}, "grid='cosine': P2 does not go by times"),
    (Dream(MASK, algorithm="confidence_threshold", threshold=0.9), {"grid": "cosine"}, "grid='cosine': Dream does not"),
    (Dream(MASK, eps=0.1), {"grid": "cosine"}, "eps=0.1: ends Dream's own times; leave it out beside a grid"),
    (JointThreshold(MASK), {}, "steps=8: JointThreshold takes as many as it needs; leave them out"),
    (LowConfidence(MASK), {"steps": None}, "steps=None: LowConfidence goes by them; give a number"),
    (JointThreshold(MASK, reach=2), {"steps": None}, "reach=2: counts blocks; give block_length"),
    (LowConfidence(MASK), {"steps": 0}, "steps=0: must be at least 1"),
    (LowConfidence(MASK), {"cache": "foo"}, "cache='foo': choose one of none"),
    (LowConfidence(MASK), {"every": "foo"}, "every='foo': choose block or step"),
    (Ancestral(PROCESS), {"grid": "foo"}, "grid='foo': choose one of uniform"),
], ids=str)
def test_what_is_not_read_is_refused_at_once(decoder, options, message):
    with pytest.raises(ValueError, match=message):
        asked(decoder, **options)


def test_dreams_eps_goes_with_an_algorithm_of_times():
    with pytest.raises(ValueError, match="eps=0.1: algorithm='confidence_threshold' does not go by times"):
        Dream(MASK, algorithm="confidence_threshold", threshold=0.9, eps=0.1)


def test_none_is_a_number_where_it_is_the_default():
    assert registry.check("dream", {"threshold": None, "alg_temp": 1}) == {"threshold": None, "alg_temp": 1.0}
    with pytest.raises(ValueError, match="alg_temp=None: must be of type float"):
        registry.check("dream", {"alg_temp": None})


@pytest.mark.parametrize("contract", ["block_causal", "causal"])
def test_guidance_is_for_networks_that_see_masks_anywhere(contract):
    network = dataclasses.replace(BLOCKS, attention=contract, block_length=4 if contract == "block_causal" else 1)
    with pytest.raises(ValueError, match=f"guidance=1.0: masks the prompt, which a {contract} network reads as text"):
        asked(LowConfidence(MASK), Denoiser(network), block_length=4, steps=24, guidance=1.0)
