"""Live progress with the time left: a bar on a terminal or in a notebook, plain lines where there is neither."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from mdlm_jax.errors import ConfigError


class Progress:
    """Progress of long work that may have been begun before; a context manager.

    On a terminal and in a notebook this is a tqdm bar. Elsewhere (a log file, CI, nohup) a bar's control characters
    would be noise, so a plain line is printed at the first update, then at most every ``interval`` seconds, and at
    the end.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        desc: str = "",
        unit: str = "step",
        *,
        interval: float = 10.0,
        file: TextIO | None = None,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows nothing yet.

        Args:
          total: where the work ends, in units.
          start: where it begins; what was done earlier does not enter the rate.
          interval: seconds between plain lines.
          file: where to print; standard error by default.
          shown: whether to show anything, ever.
        """
        file = sys.stderr if file is None else file
        self._shown: _Nothing | _Bar | _Lines
        if not shown:
            self._shown = _Nothing()
        elif _in_notebook():
            from tqdm.auto import tqdm

            self._shown = _Bar(tqdm(total=total, initial=start, desc=desc, unit=unit, dynamic_ncols=True))
        elif _is_terminal(file):
            from tqdm import tqdm

            self._shown = _Bar(tqdm(total=total, initial=start, desc=desc, unit=unit, dynamic_ncols=True, file=file))
        else:
            self._shown = _Lines(total, start, desc, unit, interval, file, clock)

    def update(self, step: int, **shown: Any) -> None:
        """Work has come to ``step`` (not: by so many steps); ``shown`` are values to print beside it."""
        self._shown.update(step, {name: _short(value) for name, value in shown.items()})

    def grow(self, total: int) -> None:
        """The work is so much."""
        self._shown.grow(total)

    def close(self) -> None:
        self._shown.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Growing:
    """Progress of work of which each call tells how much is done, and how much there is; a context manager.

    Shows nothing before the first call, of work of less than one unit nothing, and with ``shown`` False never.
    """

    def __init__(self, desc: str, unit: str, shown: bool = True):
        self._desc, self._unit, self._wanted = desc, unit, shown
        self._shown: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._wanted and total:
            self._shown = self._shown or Progress(total, desc=self._desc, unit=self._unit)
            self._shown.grow(total)
            self._shown.update(done)

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *exception) -> None:
        if self._shown:
            self._shown.close()


@contextlib.contextmanager
def following(progress: bool | Callable[[int, int], None], total: int, start: int = 0, *, desc: str,
              unit: str) -> Iterator[Callable[[int], None]]:
    """What a caller of the library asked for with ``progress``: True: a bar; False: nothing; or its own function of
    what is done and to do. Yields a function of what is done."""
    check(progress)
    if callable(progress):
        yield lambda done: progress(done, total)
        return
    with Progress(total, start, desc, unit, shown=progress) as shown:
        yield shown.update


def check(progress) -> None:
    """Refuses what `following` cannot follow."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise ConfigError(f"progress={progress!r}: must be True, False, or a function of what is done and to do")


class _Nothing:
    def update(self, step: int, shown: dict[str, str]) -> None: ...

    def grow(self, total: int) -> None: ...

    def close(self) -> None: ...


class _Bar:
    def __init__(self, bar):
        self._bar = bar

    def update(self, step: int, shown: dict[str, str]) -> None:
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def grow(self, total: int) -> None:
        self._bar.total = total

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """The rate counts from the first update on: what comes before it is mostly compilation."""

    def __init__(self, total: int, start: int, desc: str, unit: str, interval: float, file: TextIO, clock):
        self._total, self._desc, self._unit, self._interval = total, desc, unit, interval
        self._file, self._clock = file, clock
        self._begun = clock()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, dict[str, str]] = (start, {})
        self._printed: tuple[int, float] | None = None

    def update(self, step: int, shown: dict[str, str]) -> None:
        now = self._clock()
        self._first = self._first or (step, now)
        self._last = (step, shown)
        ended = step == self._total and (self._printed is None or self._printed[0] != step)
        if self._printed is None or now - self._printed[1] >= self._interval or ended:
            self._print(now)

    def grow(self, total: int) -> None:
        self._total = total

    def close(self) -> None:
        if self._printed is not None and self._printed[0] != self._last[0]:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        from tqdm import tqdm

        step, shown = self._last
        begun, since = self._first or (step, now)
        done, seconds = step - begun, now - since
        parts = [f"{step}/{self._total} {self._unit}s ({100 * step // max(self._total, 1)}%)"]
        parts.append(f"elapsed {tqdm.format_interval(now - self._begun)}")
        if done > 0 and seconds > 0:
            parts.append(f"left {tqdm.format_interval((self._total - step) * seconds / done)}")
            parts.append(f"{done / seconds:.3g} {self._unit}/s")
        parts += [f"{name}={value}" for name, value in shown.items()]
        print((self._desc + ": " if self._desc else "") + ", ".join(parts), file=self._file, flush=True)
        self._printed = (step, now)


def _short(value: Any) -> str:
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy and jax scalars
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e12 else f"{value:.4g}"


def _is_terminal(file: TextIO) -> bool:
    """A terminal of no width, as some containers have, shows no bar."""
    return file.isatty() and os.get_terminal_size(file.fileno()).columns > 0


def _in_notebook() -> bool:
    """Whether a Jupyter or Colab kernel runs this; their bars are widgets, and only tqdm.auto draws those."""
    return "ipykernel" in sys.modules
