"""The pages of the site: the repository's Markdown where it lies, and a reference made from the package.

The site mirrors the repository, so that a link between two pages means the same in both. Nothing of the reference is
kept by hand: a page for every module from its docstrings, and tables from the registries (tables.py).
"""

import ast
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the tables import the package of this checkout

import tables  # noqa: E402

COPIED = ("README.md", "CHANGELOG.md", "LICENSE", "docs/guides/*.md", "docs/few_steps/*.md", "docs/*.md", "docs/*.png",
          "benchmarks/*.md", "mdlm_jax/**/README.md", "notebooks/*.md", "notebooks/*.ipynb")


def on_config(config):
    """Adds to the navigation what is found."""
    config.nav += [
        {"Reference": [{"Python": _tree("mdlm_jax")}, {"Tables": [{title: path} for path, title, _ in tables.PAGES]}]},
        {"How it works": _found("mdlm_jax/**/README.md")},
        {"Few steps": _found("docs/few_steps/*.md")},
        {"Results": _found("benchmarks/*.md")},
        {"Changes": "CHANGELOG.md"},
    ]
    return config


def on_files(files, config):
    """Replaces the files of docs_dir, which are programs, by the pages."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted({path for pattern in COPIED for path in ROOT.glob(pattern)}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted(ROOT.glob("mdlm_jax/**/*.py")):
        files.append(File.generated(config, _page(path), content=_module(path)))
    for path, _, content in tables.PAGES:
        files.append(File.generated(config, path, content=content()))
    return files


def _found(pattern: str) -> list[dict[str, str]]:
    """Files of the repository, each under its first heading."""
    paths = sorted(ROOT.glob(pattern))
    return [{path.read_text().partition("\n")[0].lstrip("# "): path.relative_to(ROOT).as_posix()} for path in paths]


def _tree(name: str) -> list:
    """A package's own page, its packages and its modules."""
    folder = ROOT.joinpath(*name.split("."))
    below = [{path.parent.name: _tree(f"{name}.{path.parent.name}")} for path in sorted(folder.glob("*/__init__.py"))]
    modules = [{path.stem: _page(path)} for path in sorted(folder.glob("[!_]*.py"))]
    return [_page(folder / "__init__.py"), *below, *modules]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _page(path: Path) -> str:
    """Where the page of a module is: reference/mdlm_jax/core/process.md."""
    folder = "reference" / path.relative_to(ROOT).parent
    return str(folder / ("index.md" if path.stem == "__init__" else f"{path.stem}.md"))


def _module(path: Path) -> str:
    """What its docstrings say; of a package also what is in it, each with the first sentence about it."""
    name = _name(path)
    text = f"::: {name}\n"
    if path.stem != "__init__":
        return text
    inside = sorted([*path.parent.glob("*/__init__.py"), *path.parent.glob("[!_]*.py")], key=_name)
    rows = [(f"[`{_name(one)}`]({Path(_page(one)).relative_to(Path(_page(path)).parent)})", _summary(one))
            for one in inside]
    return text + "\n" + tables.table(("module", "holds"), rows)


def _summary(path: Path) -> str:
    return tables.one_line((ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n\n")[0])
