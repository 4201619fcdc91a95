"""Which cases of a parametrized test the default suite leaves to ``-m slow``."""

import pytest


def slow_unless(values, *kept, ids=None):
    """``pytest.param``s of ``values``, a tuple of which is several arguments: those not ``kept`` are slow.

    Args:
      values: of one parameter, or tuples of those of several.
      kept: values, or their names where there are ``ids``; each must be one of them.
      ids: a name for each value, or a function that makes it.
    """
    values = list(values)
    names = values if ids is None else [ids(value) for value in values] if callable(ids) else list(ids)
    missing = [one for one in kept if one not in names]
    if missing:
        raise ValueError(f"kept {missing}: there is no such case among {names}")
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name if ids is not None else None,
                         marks=() if name in kept else pytest.mark.slow)
            for value, name in zip(values, names, strict=True)]
