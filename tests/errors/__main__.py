"""Says which errors no test has provoked: ``python -m pytest --errors=DIR``, then ``python -m tests.errors DIR``.

Exit status 1 where a place that raises was never met and is not in unprovoked.txt, where one that is there is gone, and
where a message that a test did provoke names no thing or no remedy.
"""

import sys
from pathlib import Path

from tests.errors.form import faults
from tests.errors.report import provoked
from tests.errors.sites import sites

LIST = Path(__file__).with_name("unprovoked.txt")


def excused() -> dict[str, str]:
    """Key of a site -> why no test of the default suite provokes it. The file has the reasons as headings."""
    found, reason = {}, ""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


def main(folder: Path) -> int:
    known = {site.key: site for site in sites()}
    met = provoked(folder, known.values())
    without, names = excused(), {site.key for site in met}
    problems = [f"never provoked: {site.file}:{site.lines[0]} {site.message}"
                for key, site in known.items() if key not in names and key not in without]
    problems += [f"{LIST.name}: is gone: {key}" for key in without if key not in known]
    problems += [f"{site.file}:{site.lines[0]} {fault}: {message}" for site, messages in met.items()
                 for message in dict.fromkeys(messages) for fault in faults(message)]
    print("\n".join([*problems, f"{len(met)} of {len(known)} places that raise were met, {len(without)} are excused, "
                                f"{len(problems)} problems"]))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
