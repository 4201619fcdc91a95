"""Finding, running and overriding config files: launch/_configs.py."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from launch import _configs
from mdlm_jax.config import ConfigError, RunConfig, freeze
from mdlm_jax.config.recipes import SHIPPED
from mdlm_jax.models import presets
from mdlm_jax.models.shapes import layer_parameter_count

ROOT = Path(__file__).resolve().parents[2]
GOOD = "from mdlm_jax.config import default_config\ndef get_config():\n    config = default_config()\n"


def write(folder: Path, body: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(body)
    return str(path)


@pytest.mark.parametrize("text", ["quickstart", "quickstart.py", "configs/quickstart.py", "configs/quickstart"])
def test_ours_are_found_from_any_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _configs.find(text) == SHIPPED / "quickstart.py"


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", GOOD + "    config.train.steps = 700\n    return config\n", "quickstart.py")
    assert _configs.load("configs/quickstart.py", {}).train.steps == 700
    assert _configs.load("quickstart", {}).train.steps != 700


@pytest.mark.parametrize("name", list(_configs.shipped()))
def test_every_config_of_ours_is_valid_and_explained(name):
    assert isinstance(_configs.load(name, {}), RunConfig)
    assert _configs.shipped()[name].endswith(".")


def test_overrides_reach_values_that_refer_to_them(tmp_path):
    body = (
        GOOD
        + "    config.train.batch_size = 8\n"
        + "    config.eval.rows = config.train.get_ref('batch_size') * 2\n    return config\n"
    )
    path = write(tmp_path, body)
    assert _configs.load(path, {}).eval.rows == 16
    config = _configs.load(path, {"train.batch_size": 5, "process.mixing": 0.25, "data.source": "a.txt"})
    assert (config.train.batch_size, config.eval.rows, config.process.mixing, config.data.source) == (
        5,
        10,
        0.25,
        "a.txt",
    )


def test_a_config_need_not_fill_every_section(tmp_path):
    path = write(
        tmp_path,
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'train': {'steps': 300}})\n",
    )
    assert _configs.load(path, {"process.eps": 0.01}) == freeze({"train": {"steps": 300}, "process": {"eps": 0.01}})


def test_loading_leaves_no_bytecode(tmp_path):
    _configs.load(write(tmp_path, GOOD + "    return config\n"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        ("x = (", ["mine.py:1: SyntaxError"]),
        ("\nraise RuntimeError('no\\nway')\n", ["mine.py:2: RuntimeError: no ... way"]),
        (GOOD + "    helper()\n\ndef helper():\n    return 1 // 0\n", ["mine.py:7: ZeroDivisionError"]),
        ("import no_such_module\n", ["mine.py:1: ModuleNotFoundError: No module named 'no_such_module'"]),
        ("x = 3\n", ["defines no get_config()", "default_config()"]),
        ("get_config = 3\n", ["TypeError"]),
        ("def get_config():\n    return 3\n", ["returned int", "default_config()"]),
        ("def get_config():\n    pass\n", ["returned NoneType"]),
        (GOOD + "    config.train.stepz = 3\n", ['mine.py:4: ', 'there is no field "stepz"; did you mean "steps"?']),
        (GOOD + "    config.train.lr = 3\n", ['no field "lr"; did you mean "learning_rate" or "lora_rank"?']),
        (GOOD + "    config.log.qqqq = 3\n", ['there is no field "qqqq"; take one of project, wandb']),
        (GOOD + "    config['train']['lr'] = 3\n", ['mine.py:4: KeyError: there is no field "lr"; did you mean']),
        ("{}['x']\n", ["mine.py:1: KeyError: x"]),
        (GOOD + "    config.train.steps = 'many'\n", ["mine.py:4", "many"]),
        (GOOD + "    config.modle.layers = 3\n", ["mine.py:4", "modle", '"model"']),
        (GOOD + "    config.train.steps = -3\n    return config\n", ["train.steps=-3", "must be positive"]),
        (
            GOOD + "    config.unlock()\n    config.train.steps = None\n    return config\n",
            ["train.steps=None", "type int"],
        ),
        (GOOD + "    config.unlock()\n    config.extra = 3\n    return config\n", ["config.extra=3", "not a section"]),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(body, fragments, tmp_path):
    with pytest.raises(ConfigError) as caught:
        _configs.load(write(tmp_path, body), {})
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert len(str(caught.value)) < 600


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="quickstrat: there is no such file; did you mean quickstart"):
        _configs.find("quickstrat")
    with pytest.raises(ConfigError, match="nowhere/mine.py: there is no such file; the package brings .*quickstart"):
        _configs.find("nowhere/mine.py")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match="ends in .py"):
        _configs.find("mine.yaml")
    with pytest.raises(ConfigError, match="there is no such file"):
        _configs.find("__init__")


def test_every_config_of_ours_spares_jax():
    load = "from launch import _configs; [_configs.load(name, {}) for name in _configs.shipped()]"
    probe = f"import sys; {load}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_is_behind_a_colon_is_for_get_config(tmp_path):
    path = write(tmp_path, GOOD.replace("get_config()", "get_config(steps=7)")
                 + "    config.train.steps, config.train.warmup_steps = int(steps), 0\n    return config\n")
    assert _configs.load(path, {}).train.steps == 7 and _configs.load(f"{path}:12", {}).train.steps == 12
    with pytest.raises(ConfigError, match="ValueError: invalid literal"):
        _configs.load(f"{path}:twelve", {})
    with pytest.raises(ConfigError, match="takes 0 positional arguments but 1 was given"):
        _configs.load("quickstart:3", {})


@pytest.mark.parametrize("size", presets.SMDM_SIZES)
def test_smdm_s_family_and_its_twins(size):
    """Equal budgets, but for the rounding to whole steps; equal networks, but for what makes them causal."""
    masked, twin = (_configs.load(f"smdm:{size},{family},6e18", {}) for family in ("masked", "autoregressive"))
    network = masked.model.transformer(32001)
    how = {"dtype": "bfloat16", "remat": "full", "backend": "splash"}
    assert network == dataclasses.replace(presets.get(f"smdm-{size}m"), **how)
    assert dataclasses.replace(twin.model.transformer(32001), attention="bidirectional", logit_shift=False) == network
    assert masked.train == dataclasses.replace(twin.train, objective="nelbo")
    flops = 6 * layer_parameter_count(network) * masked.train.steps * 256 * 2048
    assert abs(flops - 6e18) <= flops / masked.train.steps / 2
    assert masked.train.warmup_steps == max(100, masked.train.steps // 100)


@pytest.mark.parametrize(("choice", "said"), [("171", "SIZE is one of 6, 19"), ("170,mdlm", "FAMILY must be masked or"),
                                              ("170,masked,lots", "could not convert string to float")])
def test_members_that_smdm_does_not_have(choice, said):
    with pytest.raises(ConfigError, match=said):
        _configs.load(f"smdm:{choice}", {})
