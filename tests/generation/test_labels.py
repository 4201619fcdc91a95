"""`LanguageModel` with classes: labels of rows, guidance towards them, and what is refused."""

import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from tests.generation import models
from tests.marks import slow_unless

EMPTY = [np.zeros(0, np.int32)] * 3
MODEL = models.tokens_model(mixing=0.2, conditioning="constant", classes=4)
HOW = {"new_tokens": 32, "decoder": "ancestral", "steps": 4, "stop_id": None, "seed": 5}


@pytest.mark.parametrize("guidance", slow_unless([0.0, 1.0], 1.0))
def test_labels_are_those_of_the_canvas(guidance):
    from mdlm_jax.models.denoise import Denoiser

    found = MODEL.generate(EMPTY, label=[2, 0, 3], guidance=guidance, **HOW)
    direct = decode(Denoiser(MODEL.config, models.VOCAB, MODEL.process), MODEL.params,
                    blank(models.MASK, 3, 32, condition=[2, 0, 3]), Ancestral(MODEL.process), steps=4, seed=5,
                    guidance=guidance)
    np.testing.assert_array_equal([one.row for one in found], direct.tokens)
    alone = MODEL.generate(EMPTY[:1], label=0, row_ids=[1], guidance=guidance, **HOW)
    np.testing.assert_array_equal(alone[0].row, found[1].row)
    assert found[0].forwards == 4 * (1 + bool(guidance))


def test_one_label_serves_all_rows_and_none_is_minus_one():
    same = MODEL.generate(EMPTY, label=1, **HOW)
    np.testing.assert_array_equal([one.row for one in same],
                                  [one.row for one in MODEL.generate(EMPTY, label=[1, 1, 1], **HOW)])
    np.testing.assert_array_equal([one.row for one in MODEL.generate(EMPTY, **HOW)],
                                  [one.row for one in MODEL.generate(EMPTY, label=-1, **HOW)])


def test_logits_of_a_class():
    tokens = np.arange(12).reshape(2, 6) % 10
    one, none = MODEL.logits(tokens, condition=[3, -1]), MODEL.logits(tokens)
    assert np.abs(one[0] - none[0]).max() > 1e-3
    np.testing.assert_allclose(one[1], none[1], atol=1e-5)


@pytest.mark.parametrize(("label", "guidance", "message"), [
    (4, 0.0, r"class 4: must lie in 0\.\.3"),
    ([0, 1], 0.0, r"int64\[2\] for 3 row"),
    ("3", 0.0, "give a whole number for each"),
    (None, 1.0, "guidance=1.0 guides towards a prompt"),
], ids=["class", "number", "text", "guidance"])
def test_mistakes(label, guidance, message):
    with pytest.raises(ConfigError, match=message):
        MODEL.generate(EMPTY, label=label, guidance=guidance, **HOW)


def test_models_without_classes_take_none():
    with pytest.raises(ConfigError, match="trained without classes"):
        models.tokens_model().generate(EMPTY, label=0, new_tokens=8)
