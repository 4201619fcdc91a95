"""What launch.prepare does once its flags are checked."""

import time
from pathlib import Path

from mdlm_jax import __version__
from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data import prepare as data_prepare
from mdlm_jax.progress import Progress

_UNITS = {"tokens": "piece", "shards": "shard"}


def main(options) -> None:
    """Prepares the rows, or says what would be done."""
    if options.dry_run:
        _dry_run(options)
        return
    begun = time.perf_counter()
    with _Bars() as bars:
        try:
            manifest = data_prepare.prepare(options.preparation, options.out, options.workers, __version__, bars)
        except OSError as error:
            raise ConfigError(f"{error.filename or options.out}: {error.strerror or error}; mend that and start "
                              "again: what is finished is kept") from error
    for split in manifests.SPLITS:
        print(_line(split, manifest["splits"][split]))
    if manifest["skipped_files"]:
        print(f"note     {manifest['skipped_files']} files are not UTF-8 text and were skipped")
    more = "".join(f" --config.data.{name}={value}" for name, value in _changed(manifest).items())
    print(f"{time.perf_counter() - begun:.1f} s; train on it with --config.data.source=prepared:{options.out} "
          f"--config.data.length={manifest['length']} --config.data.tokenizer={manifest['tokenizer']['spec']}{more}")


def _changed(manifest: dict) -> dict[str, str]:
    """Settings that a run on the rows must repeat, where they are not its defaults."""
    settings = {name: manifests.setting(manifest, name) for name in ("detokenizer", "packing")}
    return {name: value for name, value in settings.items() if value != getattr(DataConfig, name)}


def verify(folder: Path) -> None:
    """Compares every file with its digest."""
    manifest = manifests.read(folder)
    size = manifests.verify(folder, manifest)
    print(f"{folder}: {len(manifests.shards(manifest))} shards, {size:,} bytes: whole")


def _dry_run(options) -> None:
    preparation = options.preparation
    sources = preparation.open()
    cuts = data_prepare.survey(sources, options.workers)
    for number, name in enumerate(preparation.sources):
        print(f"source   {name}: {type(sources.parts[number]).__name__}, {sum(n == number for n, _ in cuts)} pieces")
    print(f"rows     of {preparation.length} tokens by tokenizer {preparation.tokenizer}, "
          f"{_held_out(preparation)} held out")
    processes = min(options.workers, len(cuts))
    print(f"work     {len(cuts)} pieces by {processes} processes, to {options.out or '(no --out)'}")


def _held_out(preparation) -> str:
    last = preparation.valid_last
    return f"the last {last:,} documents" if last else f"{preparation.valid_fraction:g} of the documents"


def _line(split: str, account: dict) -> str:
    return (f"{split}    {account['documents']:,} documents, {account['bytes']:,} bytes, {account['tokens']:,} tokens, "
            f"{account['rows']:,} rows in {len(account['shards'])} shards, {account['dropped_tokens']} tokens dropped")


class _Bars:
    """A progress bar for each part of the work."""

    def __init__(self):
        self._name: str | None = None
        self._bar: Progress | None = None

    def __enter__(self):
        return self

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in _UNITS:
            print(f"{name} ...", flush=True)
        elif self._bar and name == self._name:
            self._bar.update(done)
        else:
            self.close()
            self._name, self._bar = name, Progress(total, done, name, _UNITS[name])

    def close(self) -> None:
        if self._bar:
            self._bar.close()

    def __exit__(self, *exception) -> None:
        self.close()
