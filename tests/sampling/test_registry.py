"""Decoders by name: the table that is read from the sources says what the classes are."""

import dataclasses
import importlib
import subprocess
import sys

import numpy as np
import pytest

from mdlm_jax.core.process import Process
from mdlm_jax.models.circuit import Circuit, CircuitConfig
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.fused import FusedHead
from mdlm_jax.models.joint import JointSampler
from mdlm_jax.models.quality import QualityConfig, QualityHead
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling import registry

PROCESS = Process(5, 4)


@pytest.mark.parametrize("name", registry.DECODERS)
def test_an_entry_is_what_the_class_says(name):
    module, cls, preset = registry.DECODERS[name]
    fields = dataclasses.fields(getattr(importlib.import_module(f"mdlm_jax.sampling.{module}"), cls))
    entry = registry.entries()[name]
    given = (*registry.GIVEN, "head_budget")
    settable = {f.name: f.default for f in fields if f.name not in given} | preset
    assert entry.numbers.keys() == settable.keys()
    for field, number in entry.numbers.items():
        assert number.default in (settable[field], None), field
        assert number.help and isinstance(settable[field], (number.kind, type(None))), field
    assert len(entry.help) > 20 and "\n" not in entry.help
    twin = Twin({}, TransformerConfig(5, 5, 1, 8, 2, 2, 8, attention="causal", logit_shift=True), 4)
    given = {"joint": JointSampler({}, None, None, 4), "embedding": np.zeros((5, 2), np.float32), "delete_id": 5,
             "insert_id": 6, "quality": QualityHead({}, None, QualityConfig(None, "prism")), "twin": twin,
             "causal": LeftReading({}, None), "fused": FusedHead({}, twin), "circuit": Circuit({}, CircuitConfig(2, 5))}
    assert registry.make(name, process=PROCESS, numbers={}, **given).mask_id == 4


def test_a_table_without_jax():
    code = ("import sys; from mdlm_jax.sampling import registry; print(len(registry.entries()), "
            "*{'jax', 'numpy'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(registry.DECODERS))]


def test_numbers_are_checked():
    made = registry.make("low_confidence", process=PROCESS, numbers={"temperature": 1, "remasking": "random"})
    assert (made.temperature, made.remasking, made.mask_id) == (1.0, "random", 4) and type(made.temperature) is float
    for name, numbers, message in [
        ("nothing", {}, "decoder='nothing': choose one of ancestral"),
        ("ancestral", {"temprature": 1.0}, "temprature=1.0: the decoder ancestral has no such number; did you mean"),
        ("ancestral", {"mask_id": 1}, "mask_id=1: the decoder ancestral has no such number"),
        ("ancestral", {"top_k": 1.5}, "top_k=1.5: must be of type int"),
        ("ancestral", {"top_k": True}, "top_k=True: must be of type int"),
        ("ancestral", {"reuse": 1}, "reuse=1: must be of type bool"),
        ("ancestral", {"temperature": -1}, "temperature=-1.0: must be 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            registry.make(name, process=PROCESS, numbers=numbers)


def test_a_name_stands_for_one_kind_of_value_in_all_decoders():
    """Flags are numbers of all decoders under their names."""
    found = {}
    for entry in registry.entries().values():
        for name, number in entry.numbers.items():
            found.setdefault(name, set()).add(number.kind in (str, tuple))
    assert {name for name, kinds in found.items() if len(kinds) > 1} == set()
