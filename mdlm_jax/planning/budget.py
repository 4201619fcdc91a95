"""From the time of a step to tokens a day, and days and chip-hours to a budget of tokens. Free of jax."""

import math

from mdlm_jax.config import RunConfig
from mdlm_jax.planning.chips import ALL
from mdlm_jax.planning.topologies import Topology

_DAY = 86400.0


def budget(config: RunConfig, topology: Topology, step: float, tokens: float | None, efficiency: float) -> dict:
    """``tokens`` and ``efficiency`` as used, ``steps`` that the tokens are, and ``at_bound`` and ``at_efficiency``:
    seconds of a step, tokens_per_day, days and chip_hours.

    Args:
      step: seconds of the bound.
      tokens: None: steps x batch x length of the config.
      efficiency: share of the bound's speed that is reached, in (0, 1].
    """
    batch = config.train.batch_size * config.data.length
    wanted = config.train.steps * batch if tokens is None else tokens
    chips = topology.devices // ALL[topology.generation].devices
    return {"tokens": wanted, "steps": math.ceil(wanted / batch), "efficiency": efficiency, "chips": chips,
            "at_bound": _times(batch, step, wanted, chips),
            "at_efficiency": _times(batch, step / efficiency, wanted, chips)}


def _times(batch: int, step: float, tokens: float, chips: int) -> dict:
    days = tokens / batch * step / _DAY
    return {"step": step, "tokens_per_day": batch / step * _DAY, "days": days, "chip_hours": 24 * days * chips}
