"""The one error a user can cause by a setting, and the one way to stop that is no error."""

from typing import Any


class ConfigError(ValueError):
    """A configuration value that cannot work. The message names the field, the value and the remedy."""


def require(condition: bool, field: str, value: Any, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{field}={value!r}: {remedy}")


class Preempted(Exception):  # noqa: N818 (no error)
    """The run was asked to stop and has saved; the same command resumes it."""
