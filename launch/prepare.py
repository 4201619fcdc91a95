"""Prepares text for training: ``python -m launch.prepare --source=web/*.jsonl.gz --out=DIR --tokenizer=bpe:32768``.

The flags and the sources are checked here; launch/run_prepare.py does the work. Nothing of it imports jax.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import DETOKENIZERS, ConfigError
from mdlm_jax.data.preparation import Preparation
from mdlm_jax.data.several import names_of
from mdlm_jax.data.tokenizers import is_file, load_tokenizer

from . import _cli, _help

FLAGS = (
    _cli.Flag("source", "A,B,...", "text files, .jsonl, .jsonl.gz, .json.gz and .parquet files, patterns of them in "
              "quotes, folders of texts or of such files, stdlib, tfds:NAME[/CONFIG]; one or several. Required."),
    _cli.Flag("out", "DIR", "the folder for the rows: new, or one in which the same command was begun. Required, "
              "except with --dry_run."),
    _cli.Flag("detokenizer", "NAME", f"rules for a corpus whose words and signs are set apart: "
              f"{', '.join(DETOKENIZERS)}; default none"),
    _cli.Flag("tokenizer", "NAME", "byte | text8 | bpe:VOCAB_SIZE, trained on the first 64 MiB of the training split | "
              "path of a tokenizer.json; default byte"),
    _cli.Flag("length", "N", "tokens a row; default 256", int),
    _cli.Flag("packing", "NAME", "concat, whose rows serve for data.packing=documents too | wrapped: [BOS] and [EOS] "
              "around each row; default concat"),
    _cli.Flag("text_field", "NAME", "jsonl, parquet and tfds only: which field holds the text; default text"),
    _cli.Flag("data_dir", "DIR", "tfds only: the prepared data_dir"),
    _cli.Flag("valid_fraction", "SHARE", "share of the documents held out, by a hash of their names; default 0.05",
              float),
    _cli.Flag("valid_last", "N", "hold out the last N documents instead", int),
    _cli.Flag("shards", "N", "files of training rows; default: as many as make about 256 MiB each", int),
    _cli.Flag("workers", "N", "processes; default: as many as there are CPUs. The rows do not depend on it", int),
    _cli.Flag("dry_run", "", "open the sources, say what would be done, and write nothing", bool),
    _cli.Flag("verify", "", "read all of --out and compare every file with its digest; alone with --out", bool),
)

_HELP = """\
Turns text into packed rows of tokens on disk, which training reads with data.source=prepared:DIR.

usage: {program} --source=A,B,... --out=DIR [--tokenizer=NAME] [--length=N]
       {program} --verify --out=DIR

{flags}

The rows are those that training from the same text makes in memory; a run that reads them must have the same packing
and detokenizer. A command that was killed goes on where it was when it is started again, and leaves no file that only
looks whole. DIR receives train-*.array_record, valid-*.array_record, tokenizer.json and, last, manifest.json: sources,
counts, digests.

examples
  {program} --source=book.txt --out=rows/book
  {program} --source='web/*.jsonl.gz,books/' --out=rows/web --tokenizer=bpe:32768 --length=4096
  {program} --source=tfds:lm1b --data_dir=PREPARED --out=rows/lm1b --tokenizer=bert/tokenizer.json --length=128 \\
      --packing=wrapped --detokenizer=lm1b
  {program} --verify --out=rows/web

exit status: 0 done, 2 something in the command or its files is wrong, 130 interrupted
"""
_FIELDS = re.compile(r"\bdata\.(source|tokenizer|length|text_field|data_dir|valid_fraction|valid_last|detokenizer"
                     r"|packing)\b")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """A checked command line; ``out`` is None for a dry run without one."""

    preparation: Preparation
    out: Path | None
    workers: int
    dry_run: bool


def read_options(flags: dict) -> PrepareOptions:
    """Checks the flags and opens every source.

    Raises:
      ConfigError: a missing flag, an impossible value, or a source or tokenizer that cannot be read.
    """
    names = names_of(_cli.require(flags, "source", "book.txt", "the text to prepare"))
    dry_run = flags.get("dry_run", False)
    out = None
    if not dry_run or "out" in flags:
        out = Path(_cli.require(flags, "out", "rows/book", "the folder for the rows")).expanduser()
        if "://" in str(flags["out"]) or (out.exists() and not out.is_dir()):
            raise ConfigError(f"--out={flags['out']}: is not a folder of this machine; choose another")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = flags.get("workers", cores)
    for name, value in (("workers", workers), ("shards", flags.get("shards", 1))):
        if value < 1:
            raise ConfigError(f"--{name}={value}: must be positive")
    fields = {field.name for field in dataclasses.fields(Preparation)} - {"sources"}
    preparation = Preparation(tuple(names), **{name: flags[name] for name in fields if name in flags})
    preparation.open()
    if is_file(preparation.tokenizer):
        load_tokenizer(preparation.tokenizer)
    return PrepareOptions(preparation, out, workers, dry_run)


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("prepare"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    flags = arguments.flags
    if flags.get("verify"):
        others = sorted(set(flags) - {"verify", "out"})
        if others:
            raise ConfigError(f"--{others[0]}={flags[others[0]]}: has no meaning with --verify; leave it out")
        folder = Path(_cli.require(flags, "out", "rows/book", "the folder to verify")).expanduser()
        return lambda: _work("verify", folder)
    with _flags_named():
        options = read_options(flags)
    return lambda: _work("main", options)


def _work(function: str, argument) -> None:
    from . import run_prepare

    with _flags_named():
        getattr(run_prepare, function)(argument)


class _flags_named:
    """Errors of the library name configuration fields; here they are flags."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, ConfigError):
            raise ConfigError(_FIELDS.sub(r"--\1", str(error))) from error


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-prepare``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
