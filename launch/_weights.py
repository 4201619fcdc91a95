"""The weights a run starts from: those of a published or own checkpoint, fitted to the run's network."""

import dataclasses

import jax

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import load, load_step
from mdlm_jax.models import fused
from mdlm_jax.models.adapt import adapt
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import families
from mdlm_jax.models.shapes import shapes
from mdlm_jax.training import checkpoints, places


def starting_weights(train: TrainConfig, network: TransformerConfig, twin: TransformerConfig | None,
                     mesh: jax.sharding.Mesh) -> dict:
    """By name, the weights that a run begins with, laid out on the mesh: those of its network, with a ``twin`` the
    twin's too, and a fused head on both.

    Raises:
      ConfigError: as `loaded`.
    """
    found = {"network": loaded("init_from", train.init_from, network, mesh)}
    if twin is None:
        return found
    found |= {"twin": loaded("twin", train.twin, twin, mesh)}
    return found | {"fused": fused.averaged(fused.FusedConfig(network, twin), **found)}


def loaded(field: str, path: str, network: TransformerConfig, mesh: jax.sharding.Mesh) -> dict:
    """Parameters in float32, laid out on the mesh, without those of a latent where the checkpoint has none.

    ``field``: of the section train, that names the ``path``.

    A causal network that the run opens, and whose table lacks the mask's row, gets it (`models.adapt`).

    Raises:
      ConfigError: nothing can be loaded from ``path``, or its weights are not those of the run's network.
    """
    model = _loaded(path, mesh)
    config, params = model.config, model.params
    if config.attention == "causal" != network.attention and network.vocab_size == config.vocab_size + 1:
        config, params, _ = adapt(config, params, mask_column=network.head_size == network.vocab_size)
    if not config.latent:
        network = dataclasses.replace(network, latent=0)
    found, wanted = shapes(config), shapes(network)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ConfigError(f"train.{field}={path!r}: {name} is {_said(found, name)} there and "
                              f"{_said(wanted, name)} in this run; set the model section to the checkpoint's "
                              "(models.presets)")
    return params


def _loaded(path: str, mesh: jax.sharding.Mesh) -> LanguageModel:
    folder = places.place(path)
    if families.is_hf(folder):
        print(f"starting from {path}", flush=True)
        return load(folder, mesh=mesh, dtype="float32")
    folder = checkpoints.find(folder)
    print(f"starting from {path}, step {int(folder.name) if folder.name.isdigit() else folder.name}", flush=True)
    return load_step(folder, mesh=mesh, dtype="float32")


def _said(leaves: dict, name: str) -> str:
    return str(list(leaves[name])) if name in leaves else "absent"
