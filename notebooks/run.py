"""Executes notebooks and cleans what they say: ``python notebooks/run.py [NAME.ipynb ...] [--folder=DIR]``.

Every notebook (all of them unless some are named) runs in a fresh folder, or in DIR, where its runs are resumed, and is
written back with its outputs: without progress bars, paths of this machine and long texts, figures as small PNGs. Needs
the extra ``notebooks`` (``pip install -e ".[notebooks]"``); the library is that of this checkout.

``python notebooks/run.py --links`` writes `ADDRESS` into all links of the notebooks and of notebooks/README.md, and
runs nothing.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import tempfile
import time
import tokenize
from pathlib import Path

ADDRESS = "OWNER/mdlm_jax"  # of the repository on GitHub, the one place to change it; with --links it goes everywhere
FOLDER = Path(__file__).resolve().parent
LINES, COLUMNS, COLOURS = 32, 160, 64  # of a text that is kept; of a figure
_PROGRESS = re.compile(r"\d+%\||elapsed \d\d:\d\d|TqdmWarning|IProgress|tokens_per_s|^\s*from \.autonotebook|"
                       r"An NVIDIA GPU may be present|^\s*self\._shown = |very slow compile|^\*{20,}$|"
                       r"Compiling module|constant folding|os\.fork\(\)|_fork_exec", re.IGNORECASE)
_CUT = re.compile(r"\[\.\.\. (\d+) lines\]")
_OPEN = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/")


def linked(text: str) -> str:
    """The text of a file with its links to `ADDRESS`: all that go where that to open it in Colab goes."""
    for before in set(_OPEN.findall(text)):
        text = re.sub(rf"(github(?:\.com)?/){re.escape(before)}(?![\w.-])", rf"\g<1>{ADDRESS}", text)
    return text


def digest(notebook: dict) -> str:
    """Of the code cells but for comments and the first, which installs: whether outputs belong to what stands there."""
    _, *sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(map(uncommented, sources)).encode()).hexdigest()[:16]


def uncommented(source: str) -> str:
    """Code without its comments and the lines that are nothing else."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() or None
    return "\n".join(line for line in lines if line is not None)


def execute(path: Path, folder: Path) -> None:
    """Runs the notebook in ``folder`` and writes it back.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; the file stays as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    begin = time.monotonic()
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute()
    clean(notebook, folder)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - begin:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


def clean(notebook: dict, folder: Path) -> None:
    """Outputs made small and of no machine, in place; the digest of what was executed is kept beside them."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            kept = [_kept(output, folder) for output in _joined(cell["outputs"])]
            cell["outputs"] = _joined([output for output in kept if output])
            for output in cell["outputs"]:
                if output["output_type"] == "stream":
                    output["text"] = cut(output["text"])
            cell["metadata"] = {name: cell["metadata"][name] for name in ("tags",) if name in cell["metadata"]}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "mdlm_jax": {"executed": digest(notebook)},
    }


def _joined(outputs: list) -> list:
    """Pieces of one stream as one output."""
    found = []
    for output in outputs:
        if output["output_type"] == "stream" and found and found[-1].get("name") == output["name"]:
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    return found


def _kept(output: dict, folder: Path) -> dict | None:
    """The output as it is kept; None for bars and what is empty without them."""
    if output["output_type"] == "stream":
        output["text"] = cleaned(output["text"], folder)
        return output if output["text"] else None
    data = output["data"]
    if "application/vnd.jupyter.widget-view+json" in data:
        return None
    if "image/png" in data:
        output["data"] = {"image/png": _small(data["image/png"]), "text/plain": "a figure"}
    elif "text/plain" in data:
        data["text/plain"] = cut(cleaned(data["text/plain"], folder)).rstrip("\n")
    output["metadata"] = {}
    return output


def cleaned(text: str, folder: Path) -> str:
    """Text without bars and paths of this machine."""
    for place, name in ((folder, ""), (FOLDER.parent, ""), (Path(tempfile.gettempdir()), "tmp/"), (Path.home(), "~/")):
        text = text.replace(f"{place}/", name)
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    lines = [line if len(line) <= COLUMNS else line[:COLUMNS] + " ..." for line in lines if not _PROGRESS.search(line)]
    text = "\n".join(lines)
    return text if text.strip() else ""


def cut(text: str) -> str:
    """The beginning and the end of a text that is longer than `LINES`; cutting it again changes nothing."""
    lines = text.split("\n")
    middle = lines[LINES // 2 : -LINES // 2]
    if len(middle) < 2:
        return text
    hidden = sum(int(before[1]) if (before := _CUT.fullmatch(line)) else 1 for line in middle)
    return "\n".join([*lines[: LINES // 2], f"[... {hidden} lines]", *lines[-LINES // 2 :]])


def _small(png: str) -> str:
    """The figure in a palette of few colours, base64."""
    from PIL import Image  # comes with matplotlib

    image, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks of this folder; all of them unless some are named")
    parser.add_argument("--folder", type=Path, help="where they run and leave their runs; default: a fresh folder each")
    parser.add_argument("--links", action="store_true", help="write the repository's address into all links instead")
    options = parser.parse_args()
    if options.links:
        for path in (*FOLDER.glob("*.ipynb"), FOLDER / "README.md"):
            path.write_text(linked(path.read_text(encoding="utf-8")), encoding="utf-8")
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))
    for name in options.names or sorted(path.name for path in FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as fresh:
            folder = Path(options.folder or fresh).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            execute(FOLDER / Path(name).name, folder)


if __name__ == "__main__":
    main()
