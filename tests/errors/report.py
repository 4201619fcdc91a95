"""Which sites the recorded errors came from."""

import collections
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.errors.recorder import frames_of
from tests.errors.sites import Site


def provoked(folder: Path, sites: Iterable[Site]) -> dict[Site, list[str]]:
    """Each site that was met, with the messages recorded there."""
    by_file, met = _by_file(sites), collections.defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            _, message, frames = json.loads(line)
            for site in _passed(frames, by_file):
                met[site].append(message)
    return met


def sites_of(error: BaseException | None, sites: Iterable[Site]) -> set[Site]:
    """Those that an error, and those that it took over from, came from."""
    by_file, met = _by_file(sites), set()
    while error is not None:
        met |= set(_passed(frames_of(error), by_file))
        error = error.__cause__ or error.__context__
    return met


def _by_file(sites: Iterable[Site]) -> dict[str, list[Site]]:
    found = collections.defaultdict(list)
    for site in sites:
        found[site.file].append(site)
    return found


def _passed(frames: Sequence[Sequence], by_file: dict[str, list[Site]]) -> Iterator[Site]:
    """A raise is met where its line was running; a call of a teller where that function was the last one called."""
    for place, (file, number, _) in enumerate(frames):
        inner = frames[place + 1][2] if place + 2 == len(frames) else ""
        yield from (site for site in by_file.get(file, ()) if number in site.lines and site.teller in ("", inner))
