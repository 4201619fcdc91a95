"""Every notebook runs from its first cell to its last with smaller numbers, and is kept with the outputs of its own."""

import dataclasses
import importlib.abc
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import tokenizers as hf

import mdlm_jax
from mdlm_jax.data.chat import TEMPLATES
from mdlm_jax.models.hf.families import FAMILIES
from tests.models.hf.support import DESCRIPTIONS, random_tensors, save

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
MOST_BYTES = 250_000
MACHINE = re.compile(r"(?<![\w./:])/(?:home|root|tmp|work|Users|usr|opt|content|mnt|private|var)/\S+")
SHORT = {"train.steps": 2, "train.warmup_steps": 1, "train.checkpoint_every": 2, "eval.every": 2, "eval.final_rows": 16,
         "sample.num": 1}
TINY = {"model.layers": 1, "model.d_model": 16, "model.heads": 2}
SMALL = {
    "denoise.ipynb": f"""
TRAINING = {SHORT | TINY | {"data.tokenizer": "bpe:300", "data.length": 32, "sample.steps": 2}}
NEW_TOKENS, STEPS, MASKINGS = 8, 2, 2
""",
    "llada.ipynb": f"""
TRAINING = {SHORT | TINY | {"data.length": 64, "sample.steps": 2}}
QUESTIONS, STEPS = 4, (2, 4)
""",
    "parallel.ipynb": f"""
SIZE, TRAJECTORIES, TOKENS = 3, 256, (1, 3)
NETWORK, LAYER = {SHORT | TINY}, {{"train.steps": 2, "train.warmup_steps": 1, "train.checkpoint_every": 2}}
""",
    "adapt.ipynb": f"""
NETWORK, DATA = {TINY | {"data.tokenizer": "bpe:300"}}, {{"data.length": 72}}
COMMON, CAUSAL_STEPS, STEPS, EVERY = {{"train.warmup_steps": 1, "eval.rows": 8, "eval.final_rows": 8,
                                       "sample.num": 1, "train.batch_size": 8}}, 2, 2, 1
""",
    "scaling.ipynb": """
BUDGETS, SIZES = "2e9", "1x16,2x16,1x32"
FIELDS = {"data.source": "language:hmm", "eval.rows": 8, "eval.final_rows": 8, "eval.draws": 1}
""",
    "xdlm.ipynb": f"""
MIXINGS, TRAINING = (0, 0.5), {SHORT | TINY | {"data.length": 16}}
ADAPTED, MEASURED = {SHORT | {"data.length": 16}}, ["--rows=8", "--samples=4", "--steps=2,4"]
""",
}


def notebook(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def cells(name: str) -> list[dict]:
    return [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_is_run_and_told_of():
    names = sorted(path.name for path in FOLDER.glob("*.ipynb"))
    assert names == sorted(SMALL)
    told = (FOLDER / "README.md").read_text()
    assert [name for name in names if f"]({name})" not in told] == []


def test_times_and_links_agree(runner):
    """README's minutes are those that a notebook says itself; all links go to one address, which --links writes."""
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in SMALL:
        first = "".join(notebook(name)["cells"][0]["source"])
        link = f"(https://colab.research.google.com/github/{runner.ADDRESS}/blob/main/notebooks/{name})"
        minutes = re.search(r"About (\d+) minutes? on two shared cores of a CPU server", first)[1]
        assert re.search(rf"\]\({name}\) \|.*\| {minutes} \| \[open\]{re.escape(link)}", told), name
        assert f"[Open in Colab]{link}" in first
        assert f'REPOSITORY = "git+https://github.com/{runner.ADDRESS}"' in "".join(cells(name)[0]["source"])


def test_another_address_goes_everywhere_and_no_output_is_stale_for_it(runner, monkeypatch):
    before = (FOLDER / "xdlm.ipynb").read_text(encoding="utf-8")
    foreign = before.replace("![", "") + "https://github.com/OWNER/mdlm_jax_2/blob/main https://github.com/other/mdlm_jax"
    monkeypatch.setattr(runner, "ADDRESS", "someone/fork")
    text = runner.linked(foreign)
    assert text.count("someone/fork") == before.count("OWNER/mdlm_jax") > 3
    assert text.endswith("https://github.com/OWNER/mdlm_jax_2/blob/main https://github.com/other/mdlm_jax")
    assert runner.digest(json.loads(runner.linked(before))) == runner.digest(json.loads(before))


@pytest.mark.parametrize("name", SMALL)
def test_texts_link_to_files_that_are_there(name, runner):
    """A reader in Colab has no checkout: what is named is a link, and it goes somewhere."""
    for cell in notebook(name)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            linked = re.findall(rf"\(https://github\.com/{re.escape(runner.ADDRESS)}/blob/main/([^)]+)\)", text)
            assert [path for path in linked if not (ROOT / path).is_file()] == []
            plain = re.findall(r"(?<!\[)`([\w./]+\.(?:md|py|ipynb))`", text)
            assert [path for path in plain for place in (ROOT, FOLDER) if (place / path).is_file()] == []


def test_outputs_outlive_comments_and_another_install_but_not_other_code(runner):
    def made(*sources):
        return {"cells": [{"cell_type": "code", "source": [source]} for source in sources]}

    before = runner.digest(made("install()", "a = '#1'  # first\nb = f'{a}#2'\n"))
    assert before == runner.digest(made("other()", "# more\na = '#1'  # @param {type:\"string\"}\nb = f'{a}#2'\n"))
    assert before != runner.digest(made("install()", "a = '#1'\nb = f'{a}#3'\n"))
    assert before != runner.digest(made("install()", "a = '#1'\n", "b = f'{a}#2'\n"))


def test_notebooks_begin_alike():
    """The first cell installs the library, the second holds the parameters."""
    found = {name: cells(name)[:2] for name in SMALL}
    assert len({"".join(first["source"]) for first, _ in found.values()}) == 1
    assert {tuple(second["metadata"]["tags"]) for _, second in found.values()} == {("parameters",)}


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_the_cells(name, runner):
    found = cells(name)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    assert notebook(name)["metadata"]["mdlm_jax"]["executed"] == runner.digest(notebook(name)), "run notebooks/run.py"
    kinds = [output["output_type"] for cell in found for output in cell["outputs"]]
    assert "error" not in kinds
    pictures = [output for cell in found for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert pictures and "stream" in kinds


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_small_and_of_no_machine(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    outputs = json.dumps([[{kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"},
                           output.get("text", "")] for cell in cells(name) for output in cell["outputs"]])
    assert MACHINE.findall(outputs) == []
    assert "\\r" not in outputs and "%|" not in outputs


def test_texts_are_cleaned(runner, tmp_path):
    bar = "train:   5%|▌   | 5/100 [00:01<00:20, 4.9step/s]\rtrain:  10%|█   | 10/100 [00:02<00:18, 4.9step/s]\n"
    said = f"{bar}written to {tmp_path}/runs/first\nnear {ROOT}/configs\n"
    assert runner.cleaned(said, tmp_path) == "written to runs/first\nnear configs\n"
    assert runner.cleaned(bar, tmp_path) == ""
    many = "".join(f"{i}\n" for i in range(1000))
    once = runner.cut(runner.cleaned(many, tmp_path))
    lines = once.splitlines()
    assert len(lines) <= runner.LINES + 1 and lines[0] == "0" and lines[-1] == "999"
    hidden = int(re.search(r"\[\.\.\. (\d+) lines\]", once)[1])
    assert runner.cut(once) == once and len(lines) - 1 + hidden == 1000
    assert f"[... {hidden + 1000} lines]" in runner.cut(once + many)


@pytest.fixture
def first():
    """The names of the first cell, as a kernel in a folder of its own has them."""
    scope = {}
    exec(compile("".join(cells("denoise.ipynb")[0]["source"]), "first", "exec"), scope)
    return scope


class Elsewhere(importlib.abc.MetaPathFinder):
    """An install of another checkout, as pip leaves one: it finds that one's commands."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        if name == "mdlm_jax.launch":
            return importlib.util.spec_from_file_location(name, self.folder / "launch" / "__init__.py")
        return None


def test_the_commands_are_those_of_the_library_that_is_imported(first, tmp_path, monkeypatch):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "mdlm_jax.launch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Elsewhere(tmp_path), *sys.meta_path])
    assert first["commands"]() == "launch"
    for library in (tmp_path / "mdlm_jax", tmp_path):  # as a checkout and a wheel have it
        monkeypatch.setattr(first["mdlm_jax"], "__file__", str(library / "__init__.py"))
        assert first["commands"]() == "mdlm_jax.launch"
    monkeypatch.setattr(first["mdlm_jax"], "__file__", str(tmp_path / "third" / "mdlm_jax" / "__init__.py"))
    with pytest.raises(SystemExit, match="PYTHONPATH"):
        first["commands"]()


def test_other_numbers_have_another_folder_and_drive_is_asked_for(first, monkeypatch):
    places = [first["folder"]("runs/x", *numbers) for numbers in (({"a": 1}, 2), ({"a": 1}, 2), ({"a": 2}, 2), ())]
    assert places[0] == places[1] and len(set(places)) == 3 and places[0].match("runs/x_??????")
    asked = []
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=SimpleNamespace(mount=asked.append)))
    first["folder"]("/content/drive/MyDrive/runs/x", 1)
    assert asked == ["/content/drive"]
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(SystemExit, match="RUNS: /content/drive/MyDrive/x .*in Colab only; name a folder"):
        first["folder"]("/content/drive/MyDrive/x")


def test_a_checkpoint_is_a_folder_or_a_name_on_the_hub(first, tmp_path, monkeypatch):
    asked = []

    def download(name, allow_patterns, local_dir):
        asked.append((name, local_dir))
        if name == "someone/absent":
            raise OSError("404 Not Found\nand much more")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    first["RUNS"] = "runs"  # of the second cell
    assert first["fetched"](str(tmp_path)) == tmp_path and asked == []
    assert first["fetched"]("someone/small") == tmp_path and asked == [("someone/small", Path("runs/someone/small"))]
    for missing in ("LLaDA-8B-Instruct", "/content/LLaDA", "./models/x", "~/x", "models/x/"):
        with pytest.raises(SystemExit, match=f"CHECKPOINT: there is no folder {missing}, and a name on the Hub is"):
            first["fetched"](missing)
    assert len(asked) == 1
    with pytest.raises(SystemExit, match=r"no folder someone/absent, and the Hub .*\(404 Not Found\); correct"):
        first["fetched"]("someone/absent")


@pytest.fixture
def loaded(tmp_path):
    """What the cell that loads a model says of one of this family, whose tokenizer has these special tokens."""
    source = next("".join(cell["source"]) for cell in cells("llada.ipynb") if "CHATS = " in "".join(cell["source"]))

    def load(family, special):
        tokenizer = SimpleNamespace(special=dict.fromkeys(special, 0), encode_special=lambda name: [0, 1],
                                    token_text=lambda i: "")
        model = SimpleNamespace(description=SimpleNamespace(family=family), tokenizer=tokenizer)
        scope = {"jax": SimpleNamespace(default_backend=lambda: "cpu"), "published": tmp_path,
                 "mdlm_jax": SimpleNamespace(load=lambda folder, dtype: model)}
        exec(compile(source, "llada", "exec"), scope)
        return scope

    return load


def test_the_chats_are_those_of_the_table_and_of_no_other_family(loaded):
    """Every family of the library either has a template, or is told to have none."""
    chats = loaded("llada", TEMPLATES["llada"].markers)["CHATS"]
    told = "".join(notebook("llada.ipynb")["cells"][0]["source"])
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \| `(.*)` \|$", told, re.MULTILINE)
    assert {family: (template, end.replace("\\", "")) for family, template, end in rows} == {
        family: (template, TEMPLATES[template].end.strip()) for family, (template, _) in chats.items()}
    silent = set(FAMILIES) - set(chats)
    assert silent == {"gpt2", "smdm", "mdlm"}
    for family in silent:
        with pytest.raises(SystemExit, match=f"^CHECKPOINT: family {family} has no chat; choose a model of llada"):
            loaded(family, TEMPLATES["llada"].markers)


def test_a_tokenizer_without_the_tokens_of_the_template_is_refused(loaded):
    for family, lacking in (("llada", "<|eot_id|>"), ("llama", "<|im_end|>"), ("llada2", "<|role_end|>")):
        template = loaded(family, [name for one in TEMPLATES.values() for name in one.markers])["TEMPLATE"]
        others = [name for name in TEMPLATES[template].markers if name != lacking]
        with pytest.raises(SystemExit, match=f"{re.escape(lacking)} of the template {template}; choose a version"):
            loaded(family, others)


def execute(name: str, monkeypatch, folder: Path, more: str = "") -> dict:
    """Runs all cells, with small numbers after the one of parameters, and ``more``; what is then known."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that a study starts
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    matplotlib.use("Agg")
    scope, parameters = {}, 0
    for cell in cells(name):
        exec(compile("".join(cell["source"]), name, "exec"), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(SMALL[name] + more, scope)
            parameters += 1
    scope["plt"].close("all")
    assert parameters == 1
    return scope


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    execute(name, monkeypatch, tmp_path)
    assert list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
def test_a_published_causal_model_is_adapted(tmp_path, monkeypatch, capsys):
    """Its network and its tokenizer are taken, by both diffusion models, and no other is made."""
    described = DESCRIPTIONS["qwen2"]
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = hf.pre_tokenizers.ByteLevel(), hf.decoders.ByteLevel()
    tokenizer.train_from_iterator(["text"], hf.trainers.BpeTrainer(
        vocab_size=260, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()))
    size = tokenizer.get_vocab_size()
    network = dataclasses.replace(described.config, vocab_size=size, head_size=size)
    described = dataclasses.replace(described, config=network, eos_id=0)
    save(tmp_path / "small", described, random_tensors(described))
    tokenizer.save(str(tmp_path / "small" / "tokenizer.json"))
    scope = execute("adapt.ipynb", monkeypatch, tmp_path, f"CHECKPOINT, NEW_TOKENS = {str(tmp_path / 'small')!r}, 500")
    for name in ("adapted", "scratch"):
        model = mdlm_jax.load(tmp_path / scope["FOLDER"] / name)
        assert (model.config.layers, model.config.d_model, model.tokenizer.vocab_size) == (3, 32, size + 1)
    said = capsys.readouterr().out
    assert not (scope["FOLDER"] / "causal").exists() and "--- scratch" in said and "nats per token at the end" in said
