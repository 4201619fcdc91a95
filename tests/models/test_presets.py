"""Published networks have the published numbers of parameters."""

import subprocess
import sys

import pytest

from mdlm_jax.config.model import ModelConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.models import api, presets
from mdlm_jax.models.hf import families
from mdlm_jax.models.shapes import active_parameter_count, layer_parameter_count, parameter_count

# Non-embedding parameters of arXiv 2410.18514 (the reference's table, checked against its module).
SMDM = {
    6: 6294784, 19: 18880896, 34: 33563136, 48: 47786688, 66: 65549440, 75: 75387520, 85: 85214080, 113: 113265408,
    142: 141581568, 170: 169897728, 180: 179856768, 206: 205550464, 231: 231244160, 268: 268469248, 302: 302027776,
    336: 335586304, 472: 471906560, 551: 550557440, 571: 571001728, 629: 629208320, 666: 666168448, 717: 717285888,
    761: 761335168, 831: 830541312, 944: 943796736, 1028: 1027677952, 1233: 1233213184, 1476: 1476487168,
    1678: 1677826048, 2121: 2121393280,
}
# Totals of the models' safetensors as their pages show them; tied heads count once.
EXACT = {
    "llada-8b": 8015581184, "llada-1.5": 8015581184, "dream-7b": 7615616512, "llama-3-8b": 8030261248,
    "llama-3.1-8b": 8030261248, "llama-3.2-1b": 1235814400, "llama-3.2-3b": 3212749824, "qwen2-0.5b": 494032768,
    "qwen2-1.5b": 1543714304, "qwen2-7b": 7615616512, "qwen2.5-0.5b": 494032768, "qwen2.5-1.5b": 1543714304,
    "qwen2.5-3b": 3085938688, "qwen2.5-7b": 7615616512, "qwen3-0.6b": 596049920, "qwen3-1.7b": 1720574976,
    "qwen3-4b": 4022468096, "qwen3-8b": 8190735360, "gpt2": 124439808, "gpt2-medium": 354823168,
    "gpt2-large": 774030080, "gpt2-xl": 1557611200,
}
# (all, active) in billions as papers and model cards round them.
ROUNDED = {
    "llada-8b": (8.02, None), "illada-8b": (7.62, None), "llada-moe-7b-a1b": (7.36, None), "llada2-mini": (16, 1.4),
    "llada2-flash": (100, 6.1), "mdlm-small": (0.17, None), "mdlm-medium": (0.424, None), "qwen2-0.5b": (0.49, None),
    "qwen2-1.5b": (1.54, None), "qwen2-7b": (7.6, None), "qwen2.5-3b": (3.09, None), "llama-3.2-1b": (1.24, None),
    "llama-3.2-3b": (3.21, None), "qwen3-8b": (8.2, None), "qwen3-0.6b": (0.6, None), "qwen3-4b": (4.0, None),
}


def test_all_of_smdm():
    assert len(SMDM) == 30
    for size, count in SMDM.items():
        config = presets.get(f"smdm-{size}m")
        assert layer_parameter_count(config) == count
        assert parameter_count(config) == count + (32001 + 32000) * config.d_model
        assert (config.vocab_size, config.head_size) == (32001, 32000)


@pytest.mark.parametrize("name", EXACT)
def test_totals(name):
    assert parameter_count(presets.get(name)) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_totals(name):
    total, active = ROUNDED[name]
    config = presets.get(name)
    assert parameter_count(config) / 1e9 == pytest.approx(total, rel=0.035)
    if active:
        assert active_parameter_count(config) / 1e9 == pytest.approx(active, rel=0.05)


def test_llada_8b_without_embeddings():
    config = presets.get("llada-8b")
    assert (parameter_count(config) - 2 * config.vocab_size * config.d_model) / 1e9 == pytest.approx(6.98, abs=5e-3)


@pytest.mark.parametrize("name", ["mdlm-small", "smdm-170m", "llada-8b", "dream-7b", "llada2-mini", "gpt2", "qwen3-4b"])
def test_the_formula_is_the_network(name):
    config = presets.get(name)
    assert parameter_count(config) == api.num_parameters(config)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_as_the_model_section_of_a_run(name):
    config = presets.get(name)
    assert ModelConfig(**presets.fields(name)).transformer(min(config.vocab_size, config.head_size)) == config


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_can_be_said_in_a_config_json(name):
    config = presets.get(name)
    raw = families.write_fields(families.family_of(config, {}))
    assert families.architecture(families.read(raw).config) == families.architecture(config)


def test_bases_are_causal_and_diffusion_models_are_not():
    for name, config in presets.PRESETS.items():
        base = name.startswith(("llama", "qwen", "gpt2"))
        assert (config.attention == "causal") == base
        assert config.logit_shift == (base or name == "dream-7b")


def test_active_parameters_of_llada_moe():
    """Its 1.4 B leave the input table out."""
    config = presets.get("llada-moe-7b-a1b")
    assert (active_parameter_count(config) - config.vocab_size * config.d_model) / 1e9 == pytest.approx(1.4, abs=0.01)


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="llada-8b"):
        presets.get("llada_8b")


def test_presets_need_no_jax():
    code = "import sys; from mdlm_jax.models import presets, shapes; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
