"""The site builds without a warning, and nothing is left out of it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.docs]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning is an error."""
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_module_and_every_page_is_there(site):
    for path in ROOT.glob("mdlm_jax/**/*.py"):
        page = path.relative_to(ROOT).with_suffix("")
        page = page.parent if page.name == "__init__" else page
        text = (site / "reference" / page / "index.html").read_text()
        assert ".".join(page.parts) in text
    for path in (ROOT / "docs").glob("guides/*.md"):
        assert (site / "docs" / "guides" / path.stem / "index.html").is_file()


def test_docstrings_are_read_in_sections_with_links(site):
    text = (site / "reference" / "mdlm_jax" / "language_model" / "index.html").read_text()
    for section in ("Attributes", "Parameters", "Raises", "Examples"):
        assert f'doc-section-title">{section}:' in text
    assert "<strong>Returns:</strong>" in text
    assert 'id="mdlm_jax.language_model.LanguageModel.generate"' in text
    assert 'href="../generation/generate/#mdlm_jax.generation.generate.Generation"' in text


def test_the_tables_hold_what_the_registries_hold(site):
    from mdlm_jax.config import OBJECTIVES
    from mdlm_jax.data.languages.registry import LANGUAGES
    from mdlm_jax.sampling.registry import DECODERS

    for page, names in (("decoders", DECODERS), ("objectives", OBJECTIVES), ("languages", LANGUAGES)):
        text = (site / "reference" / page / "index.html").read_text()
        assert all(name in text for name in names)
