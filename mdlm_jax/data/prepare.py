"""Text to shards of packed, tokenised rows: in parallel, resumable, the same whatever the number of processes.

Two passes. First every piece of the sources (``pieces``) becomes two files of bare token ids, one for each split. Then
their lengths are known, so that the rows of every shard can be cut from the joined stream of all pieces: the very rows
that ``pipeline.build`` holds in memory for the same text. Everything is written under another name and moved to its own
when it is on the disk; what a killed run has finished is not done again. The manifest comes last.
"""

import dataclasses
import fcntl
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.config.data import row_tokens
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data import pieces, processes
from mdlm_jax.data.detokenizers import detokenized
from mdlm_jax.data.files import appearing, sha256_of, write_whole
from mdlm_jax.data.manifest import SPLITS, TOKENIZER, UNFINISHED
from mdlm_jax.data.packing import encode, pack
from mdlm_jax.data.preparation import FAILED, Preparation, claim, describe, failed, finished
from mdlm_jax.data.several import Several
from mdlm_jax.data.sources import Source
from mdlm_jax.data.splits import HeldOut
from mdlm_jax.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer

SHARD_BYTES = 256 << 20  # of rows, before compression
_OPTIONS = "group_size:1,zstd:1"  # a row a group: random access reads nothing else
_COPY = 1 << 22  # tokens moved at a time
Report = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclasses.dataclass(frozen=True)
class Work:
    """What every process needs to know.

    Attributes:
      folder: the one for what is unfinished.
      sources, held: the sources; which documents of each are held out.
      cuts: (source, piece) of every piece.
      length, packing, detokenizer: as in ``DataConfig``.
      counts: tokens of every piece by split, once the first pass is over.
    """

    folder: Path
    sources: tuple[Source, ...]
    held: tuple[HeldOut, ...]
    cuts: tuple[tuple[int, pieces.Piece], ...]
    length: int
    packing: str = "concat"
    detokenizer: str = ""
    counts: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder.parent / TOKENIZER)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    @property
    def stream_length(self) -> int:
        """Tokens of the joined stream in a row."""
        return row_tokens(self.length, self.packing)

    def ids(self, number: int, split: str) -> Path:
        return self.folder / f"{number:06d}.{split}"

    def note(self, name: str) -> Path:
        """The file that says that something is finished, and what came of it."""
        return self.folder / f"{name}.json"


def survey(sources: Several, workers: int) -> tuple[tuple[int, pieces.Piece], ...]:
    """All pieces of all sources, in order."""
    cuts = dict(processes.run(_cut, sources.parts, range(len(sources.parts)), workers))
    return tuple((number, piece) for number in range(len(sources.parts)) for piece in cuts[number])


def prepare(preparation: Preparation, out: Path, workers: int, library: str, report: Report) -> dict:
    """Does everything that is not done yet and returns the manifest.

    Args:
      out: a new folder, an empty one, or one in which the same preparation was begun or finished.
      workers: processes; the result does not depend on them.
      library: version for the manifest.

    Raises:
      ConfigError: another preparation in ``out``, a source or tokenizer that cannot be used, or too little text.
    """
    sources = preparation.open()
    described = describe(preparation, sources)
    if (out / manifests.NAME).exists():
        manifest = finished(out, described)
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # a kill can come between the manifest and the tidying
        return manifest
    folder = claim(out, described)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out={out}: another launch.prepare is at work there; wait for it") from None
        (folder / FAILED).unlink(missing_ok=True)
        try:
            return _prepare(preparation, out, workers, library, report, sources, described)
        except ConfigError:
            failed(out)
            raise


def _prepare(preparation, out: Path, workers: int, library: str, report: Report, sources: Several, described) -> dict:
    folder = out / UNFINISHED
    report("reading the sources", 0, 1)
    cuts = survey(sources, workers)
    _settle_tokenizer(preparation, out, folder, sources)
    work = Work(folder, sources.parts, sources.held_of_parts, cuts, preparation.length, preparation.packing,
                preparation.detokenizer)
    names = [f"{number:06d}" for number in range(len(cuts))]
    notes = _pass(_tokens_of_piece, work, range(len(cuts)), names, workers, report, "tokens")
    work = dataclasses.replace(work, counts={split: tuple(n[split]["tokens"] for n in notes) for split in SPLITS})
    shards = plan_shards(work, preparation.shards)
    _check_enough(preparation, notes, shards)
    done = _pass(_rows_of_shard, work, shards, [name for name, *_ in shards], workers, report, "shards")
    manifest = manifests.seal(_manifest(preparation, work, library, described, notes, done))
    manifests.write(out, manifest, folder)
    shutil.rmtree(folder)
    return manifest


def _pass(task, work: Work, items, names: list[str], workers: int, report: Report, what: str) -> list[dict]:
    """Runs the task for every item whose note is missing; all notes, in order."""
    missing = [item for item, name in zip(items, names, strict=True) if not _noted(work, name)]
    done = len(names) - len(missing)
    report(what, done, len(names))
    for _ in processes.run(task, work, missing, workers):
        done += 1
        report(what, done, len(names))
    return [json.loads(work.note(name).read_text()) for name in names]


def _noted(work: Work, name: str) -> bool:
    """Whether a note exists and all files it speaks of have their sizes."""
    if not work.note(name).exists():
        return False
    sizes = json.loads(work.note(name).read_text())["files"]
    paths = {file: work.folder.parent / file for file in sizes}
    return all(path.is_file() and path.stat().st_size == sizes[file] for file, path in paths.items())


def _cut(parts: tuple[Source, ...], number: int) -> tuple[int, list[pieces.Piece]]:
    return number, pieces.cut(parts[number], pieces.SIZE)


def _settle_tokenizer(preparation: Preparation, out: Path, folder: Path, sources: Several) -> None:
    path = out / TOKENIZER
    if not path.exists():
        texts = lambda: (d.text for d in detokenized(sources.documents("train"), preparation.detokenizer))  # noqa: E731
        tokenizer = make_tokenizer(preparation.tokenizer, texts)
        with appearing(path, folder) as temporary:
            tokenizer.save(temporary)


def _tokens_of_piece(work: Work, number: int) -> None:
    """First pass: the ids of a piece's documents, each followed by the end token, by split."""
    index, piece = work.cuts[number]
    source = work.sources[index]
    source.skipped.clear()
    note: dict[str, Any] = {split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    end = np.array([work.tokenizer.eos_id], work.dtype).tobytes()
    with appearing(work.ids(number, "train"), work.folder) as train, \
            appearing(work.ids(number, "valid"), work.folder) as valid, \
            open(train, "wb") as train_file, open(valid, "wb") as valid_file:
        files = {"train": train_file, "valid": valid_file}
        documents = detokenized((d for d in pieces.read(source, piece) if d.text), work.detokenizer)
        for document, ids in encode(documents, work.tokenizer):
            split = piece.split or ("valid" if work.held[index](document.name) else "train")
            files[split].write(ids.astype(work.dtype).tobytes() + end)
            note[split]["documents"] += 1
            note[split]["bytes"] += len(document.text.encode())
            note[split]["tokens"] += len(ids) + 1
    note["skipped"] = len(source.skipped)
    paths = [work.ids(number, split) for split in SPLITS]
    note["files"] = {f"{UNFINISHED}/{path.name}": path.stat().st_size for path in paths}
    write_whole(work.note(f"{number:06d}"), json.dumps(note))


def plan_shards(work: Work, wanted: int) -> list[tuple[str, str, int, int]]:
    """(file name, split, first row, row after the last) of every shard; rows are shared out evenly.

    Raises:
      ConfigError: more shards than training rows.
    """
    rows = {split: sum(work.counts[split]) // work.stream_length for split in SPLITS}
    if wanted > rows["train"]:
        raise ConfigError(f"--shards={wanted}: there are only {rows['train']} training rows; lower it")
    each = max(1, SHARD_BYTES // (work.length * work.dtype.itemsize))
    if wanted:
        each = -(-rows["train"] // wanted)
    number = {split: -(-rows[split] // each) for split in SPLITS} | ({"train": wanted} if wanted else {})
    return [(f"{split}-{k:05d}-of-{number[split]:05d}{manifests.SUFFIX}", split, k * rows[split] // number[split],
             (k + 1) * rows[split] // number[split]) for split in SPLITS for k in range(number[split])]


def _check_enough(preparation: Preparation, notes: list[dict], shards: list[tuple]) -> None:
    for split in SPLITS:
        if not any(shard[1] == split for shard in shards):
            documents, tokens = (sum(note[split][name] for note in notes) for name in ("documents", "tokens"))
            raise ConfigError(f"--source={','.join(preparation.sources)}: its {split} split has {documents} documents "
                              f"of {tokens} tokens, which do not fill a row of --length={preparation.length}; give "
                              "more text, lower --length or hold out more or fewer documents")


def _rows_of_shard(work: Work, shard: tuple[str, str, int, int]) -> None:
    """Second pass: cuts a shard's rows from the joined stream."""
    from array_record.python.array_record_module import ArrayRecordWriter

    name, split, first, last = shard
    path = work.folder.parent / name
    with appearing(path, work.folder) as temporary:
        writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        rest, each = np.empty(0, work.dtype), work.stream_length
        for ids in _stream(work, split, first * each, last * each):
            joined = np.concatenate([rest, ids])
            rows = pack(joined, work.length, work.packing, work.tokenizer)
            rest = joined[len(rows) * each :]
            for row in rows:
                writer.write(row.tobytes())
        writer.close()
        note = {"name": name, "split": split, "rows": last - first, "bytes": temporary.stat().st_size,
                "sha256": sha256_of(temporary)}
    write_whole(work.note(name), json.dumps(note | {"files": {name: note["bytes"]}}))


def _stream(work: Work, split: str, start: int, stop: int) -> Iterator[np.ndarray]:
    """Tokens start..stop-1 of a split's joined stream, some at a time."""
    before = 0
    for number, count in enumerate(work.counts[split]):
        begin, end = max(start - before, 0), min(stop - before, count)
        before += count
        for at in range(begin, end, _COPY):
            size = min(_COPY, end - at)
            yield np.fromfile(work.ids(number, split), work.dtype, size, offset=at * work.dtype.itemsize)


def _manifest(preparation: Preparation, work: Work, library: str, described: dict, notes: list, done: list) -> dict:
    tokenizer = work.tokenizer
    splits = {}
    for split in SPLITS:
        total = {name: sum(note[split][name] for note in notes) for name in ("documents", "bytes", "tokens")}
        shards = [{name: d[name] for name in ("name", "rows", "bytes", "sha256")} for d in done if d["split"] == split]
        rows = sum(shard["rows"] for shard in shards)
        dropped = total["tokens"] - rows * work.stream_length
        splits[split] = total | {"rows": rows, "dropped_tokens": dropped, "shards": shards}
    ids = {name: getattr(tokenizer, name) for name in ("vocab_size", "mask_id", "eos_id", "pad_id", "lossless")}
    return {
        "library": library,
        **described,
        "tokenizer": {"spec": preparation.tokenizer, "sha256": sha256_of(work.folder.parent / TOKENIZER), **ids},
        "length": work.length,
        "dtype": work.dtype.newbyteorder("=").name,
        "skipped_files": sum(note["skipped"] for note in notes),
        "splits": splits,
    }
