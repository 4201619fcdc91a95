"""Which sites the recorded errors came from."""

import collections
import json
from collections.abc import Iterable
from pathlib import Path

from tests.errors.sites import Site


def provoked(folder: Path, sites: Iterable[Site]) -> dict[Site, list[str]]:
    """Each site that was hit, with the messages recorded there."""
    by_file = collections.defaultdict(list)
    for site in sites:
        by_file[site.file].append(site)
    hits = collections.defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            _, message, frames = json.loads(line)
            for place, (file, number, _) in enumerate(frames):
                inner = frames[place + 1][2] if place + 2 == len(frames) else ""  # the last function called
                for site in by_file[file]:
                    if number in site.lines and (not site.teller or inner == site.teller):
                        hits[site].append(message)
    return hits
