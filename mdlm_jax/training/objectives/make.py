"""From a name and its numbers, as in ``draft_edit:0.1,1,2``, to an objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mdlm_jax.config import TrainConfig, parse_block_schedule
from mdlm_jax.config.objectives import check_columns
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.data.trajectories import folder_of, read_meta
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.any_order import AnyOrderObjective, AnySubsetObjective
from mdlm_jax.training.objectives.autoregressive import AutoregressiveObjective
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.codd import CoDDObjective
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.di4c import Di4CObjective
from mdlm_jax.training.objectives.dmax import DMaxBlockObjective, DMaxObjective
from mdlm_jax.training.objectives.dparallel import DParallelObjective
from mdlm_jax.training.objectives.draft_edit import DraftEditObjective
from mdlm_jax.training.objectives.duo import DuoObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Objective
from mdlm_jax.training.objectives.gidd import GiddObjective
from mdlm_jax.training.objectives.joint import JointObjective
from mdlm_jax.training.objectives.levenshtein import LevenshteinObjective
from mdlm_jax.training.objectives.maria import MariaObjective
from mdlm_jax.training.objectives.quality import PlannerObjective, PRISMObjective
from mdlm_jax.training.objectives.sdtt import SDTTObjective

NOISELESS = ("autoregressive", "any_order", "any_subset")  # have no noise level
STAYS = ("joint", "planner", "prism", "codd", "maria")  # train beside a network that stays as it is
HALVES = ("count", "block", "dparallel", "dmax", "maria")  # may run the head on half the slots


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an objective is made of.

    Attributes:
      kind, numbers: of ``train.objective``, and never nelbo.
      shared: the fields of `Objective`, and of those in `HALVES` ``half_head``.
      train, source: of the configuration: its section, and where the rows come from.
      twin: the shape of the network of train.twin, where there is one.
    """

    kind: str
    numbers: tuple[float, ...]
    shared: dict[str, Any]
    train: TrainConfig
    source: str
    twin: TransformerConfig | None = None


def make(asked: Asked) -> Objective:
    """The objective; a network that stays, and so does what it says, has no dropout.

    Raises:
      ConfigError: a head without the columns that the objective needs.
    """
    if asked.kind in STAYS:
        asked = dataclasses.replace(asked, shared=asked.shared | {"network": still(asked.shared["network"])})
    return _MAKERS[asked.kind](asked)


def still(network: TransformerConfig | None) -> TransformerConfig | None:
    """Without dropout."""
    return network and dataclasses.replace(network, dropout=0.0)


def _plain(cls: type[Objective], *names: str) -> Callable[[Asked], Objective]:
    """Of a class whose fields ``names`` are the numbers, whole ones where the field is."""
    whole = {field.name for field in dataclasses.fields(cls) if field.type in (int, "int")}

    def made(asked: Asked) -> Objective:
        numbers = zip(names, asked.numbers, strict=True)
        fields: dict[str, Any] = {name: int(value) if name in whole else value for name, value in numbers}
        return cls(**asked.shared, **fields)

    return made


def _joint(asked: Asked) -> JointObjective:
    network, train = asked.shared["network"], asked.train
    never = read_meta(folder_of(asked.source))["suppress"] if train.on_policy else ()
    return JointObjective(
        **asked.shared, passes=int(asked.numbers[0]), any_order=train.any_order, on_policy=train.on_policy,
        block_length=network.block_length if network.attention == "block_causal" else 0, suppress=tuple(never))


def _taught(cls: type[SDTTObjective] | type[DuoObjective]) -> Callable[[Asked], Objective]:
    return lambda asked: cls(**asked.shared, steps=int(asked.numbers[0]),
                             forward_kl=asked.train.divergence == "forward_kl")


def _count(asked: Asked) -> CountObjective:
    train = asked.train
    return CountObjective(**asked.shared, both=train.each_twice, confidence=train.confidence,
                          complementary=train.complementary)


def _block(asked: Asked) -> BlockObjective:
    train = asked.train
    return BlockObjective(**asked.shared, both=train.each_twice, confidence=train.confidence,
                          sizes=parse_block_schedule(train.block_schedule))


def _continuous(asked: Asked) -> ContinuousObjective:
    gidd = isinstance(asked.shared["process"], GiddProcess)
    return (GiddObjective if gidd else ContinuousObjective)(**asked.shared)


def _dparallel(asked: Asked) -> DParallelObjective:
    block, beta, temperature = asked.numbers
    own = {name: value for name, value in asked.shared.items() if name not in ("law", "coupling", "weighting")}
    return DParallelObjective(**own, block=int(block), confidence=beta, sharpness=temperature)


def _dmax(asked: Asked) -> DMaxObjective:
    masked, own, temperature = asked.numbers
    shared = asked.shared | {"masked_weight": masked, "own_weight": own, "temperature": temperature}
    if shared["network"].attention == "two_stream":
        return DMaxBlockObjective(**shared, sizes=parse_block_schedule(asked.train.block_schedule))
    return DMaxObjective(**shared)


def _levenshtein(asked: Asked) -> LevenshteinObjective:
    weight, turns = asked.numbers
    check_columns(asked.train.objective, asked.shared["process"].vocab_size, asked.shared["network"].head_size)
    return LevenshteinObjective(**asked.shared, sizes=parse_block_schedule(asked.train.block_schedule),
                                edit_weight=weight, turns=int(turns))


_MAKERS: dict[str, Callable[[Asked], Objective]] = {
    "count": _count,
    "continuous": _continuous,
    "discrete": _plain(DiscreteObjective, "num_steps"),
    "genmd4": _plain(GenMD4Objective, "initial_power"),
    "autoregressive": _plain(AutoregressiveObjective),
    "block": _block,
    "any_order": _plain(AnyOrderObjective),
    "any_subset": _plain(AnySubsetObjective, "low", "high"),
    "joint": _joint,
    "planner": _plain(PlannerObjective, "layers"),
    "prism": _plain(PRISMObjective, "reveal"),
    "codd": _plain(CoDDObjective, "states"),
    "maria": lambda asked: MariaObjective(**asked.shared, twin=still(asked.twin)),
    "sdtt": _taught(SDTTObjective),
    "duo": _taught(DuoObjective),
    "di4c": _plain(Di4CObjective, "steps", "latents", "delta", "power"),
    "draft_edit": _plain(DraftEditObjective, "edit_rate", "edit_weight", "turns"),
    "dparallel": _dparallel,
    "dmax": _dmax,
    "levenshtein": _levenshtein,
}
