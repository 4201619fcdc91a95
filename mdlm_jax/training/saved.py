"""The weights in a step's folder, to use them: averaged where there are some, adapters added to what they adapt."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from mdlm_jax.config import TrainConfig
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training import adapters, beside, checkpoints, places


def described(folder: Path | str) -> dict:
    """The tree of `weights` as ``ShapeDtypeStruct``s, without reading an array."""
    saved = checkpoints.abstract(folder)
    used = {name: leaf for name, leaf in saved[_name(saved)].items() if name != "adapters"}
    return used | {name: leaf for name, leaf in saved.get("frozen", {}).items() if name != "teacher"}


def weights(folder: Path | str, train: TrainConfig, network: TransformerConfig | None = None, mesh: Mesh | None = None,
            verified: bool = False) -> dict:
    """What the objective of the run trained, its ``network`` among it.

    Args:
      train: of the run: its adapters' rank and scale.
      network, mesh: where the network goes; None: whole, on the first local device.
      verified: the digests have just been checked.

    Raises:
      ConfigError: as `checkpoints.restore_path`.
    """
    plan, saved = adapters.of(train), checkpoints.abstract(folder)
    name = _name(saved)
    wanted = {part: saved[part] for part in (name, "frozen") if part in saved}
    if "teacher" in wanted.get("frozen", {}):
        del wanted["frozen"]
    if mesh is not None:
        assert network is not None  # which says how it lies there
        twin = beside.stored_twin(places.place(folder))
        network_layout, frozen_layout = adapters.shardings(plan, network, mesh, twin)
        wanted[name] |= _placed(wanted[name], network_layout)
        if "frozen" in wanted and frozen_layout is not None:
            wanted["frozen"] |= _placed(wanted["frozen"], frozen_layout)
    found = checkpoints.restore_path(folder, wanted, partial=True, verified=verified).tree
    return adapters.merged(plan, found[name], found.get("frozen"))


def _name(saved: dict) -> str:
    return "ema" if "ema" in saved else "trainable"


def _placed(saved: dict, layout: dict) -> dict:
    return {name: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), saved[name], layouts)
            for name, layouts in layout.items()}
