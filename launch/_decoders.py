"""Decoders on a command line: their names, their numbers as flags, and the words about both. Never imports jax."""

from mdlm_jax.config import ConfigError
from mdlm_jax.sampling import registry

from . import _cli, _help

EVERYWHERE = ("temperature", "top_p", "top_k")  # flags of launch.sample itself


def flags() -> tuple[_cli.Flag, ...]:
    """One flag for each number that any decoder has; whole where it is whole in all of them."""
    found: dict[str, type] = {}
    for entry in registry.entries().values():
        for name, number in entry.numbers.items():
            kind = str if number.kind is tuple else number.kind
            found[name] = float if float in (kind, found.get(name)) else kind
    return tuple(_cli.Flag(name, "" if kind is bool else "X", "", kind) for name, kind in found.items()
                 if name not in EVERYWHERE)


def lines() -> str:
    """All decoders with their numbers, for --help."""
    found = []
    for entry in registry.entries().values():
        usual = ", ".join(f"{name} {number.default:g}" for name, number in entry.numbers.items() if name in EVERYWHERE)
        about = f"{_plain(entry.help)} Default: {usual}." if usual else _plain(entry.help)
        found.append(_help.row(f"--decoder={entry.name}", about))
        for name, number in entry.numbers.items():
            if name not in EVERYWHERE:
                default = str(number.default).lower() if number.kind is bool else number.default
                value = "" if default in (None, "false", ()) else f"={default}"
                found.append(_help.row(f"  --{name}{value}", _plain(number.help)))
    return "\n".join(found)


def _as(kind: type, name: str, value):
    """A flag's value as the decoder wants it, where decoders differ."""
    if kind is int and value == int(value):
        return int(value)
    if kind is not tuple:
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise ConfigError(f"--{name}={value}: must be whole numbers, as in 7,8") from None


def _plain(words: str) -> str:
    return words.replace("`", "")


def entry(decoder: str) -> registry.Entry:
    """What is known of a decoder by name. ConfigError where there is none."""
    try:
        return registry.require(decoder)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None


def numbers(given: dict, decoder: str) -> dict:
    """The numbers among the flags, for ``decoder``.

    Raises:
      ConfigError: an unknown decoder, or a number that it does not have.
    """
    has = entry(decoder).numbers
    known = {flag.name for flag in flags()} | set(EVERYWHERE)
    found = {name: value for name, value in given.items() if name in known}
    for name, value in found.items():
        if name in has:
            found[name] = _as(has[name].kind, name, value)
        else:
            raise ConfigError(f"--{name}={value}: the decoder {decoder} has no such number; it has "
                              f"{', '.join(has)}")
    try:
        return registry.check(decoder, found)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
