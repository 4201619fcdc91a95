"""The optimiser of a run: AdamW, Lion or Muon on clipped gradients, with weights that do not train left out."""

import fnmatch
import math
from typing import Any

import jax
import optax
from optax import contrib

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.training.schedules import learning_rate

# Matrices of the layers: how many axes they contract and make, the last ones; axes before are stacked.
_MATRICES = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2, 1), "gate": (1, 1), "up": (1, 1),
             "down": (1, 1), "shared_gate": (1, 1), "shared_up": (1, 1), "shared_down": (1, 1)}
_MUON_RMS = 0.2  # that of AdamW's updates, so that its learning rate and weight decay can be kept (arXiv 2502.16982)


def optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Gradients clipped to the global norm ``clip_norm``, then the rule of ``train.optimizer``.

    adamw (arXiv 1711.05101), lion (arXiv 2302.06675; its learning rate is usually a tenth of AdamW's), muon
    (orthogonalised momentum b1 for the matrices of the layers, arXiv 2502.16982; AdamW with Nesterov momentum for the
    rest). Weight decay is multiplied by the learning rate and applies where `decay_mask` is True. Leaves that
    ``train.freeze`` names have no moments and stay as they are.
    """
    rate, decay = learning_rate(train), train.weight_decay
    if train.optimizer == "lion":
        rule = optax.lion(rate, b1=train.b1, b2=train.b2, weight_decay=decay, mask=decay_mask)
    elif train.optimizer == "muon":
        rule = contrib.muon(
            rate, beta=train.b1, weight_decay=decay, weight_decay_mask=decay_mask, adam_b1=train.b1, adam_b2=train.b2,
            adam_weight_decay=decay, muon_weight_dimension_numbers=_matrix_axes, consistent_rms=_MUON_RMS,
        )
    else:
        rule = optax.adamw(
            rate, b1=train.b1, b2=train.b2, eps=train.adam_eps, weight_decay=decay, mask=decay_mask)
    chain = optax.chain(optax.clip_by_global_norm(train.clip_norm), rule)
    if not train.freeze:
        return chain

    def labels(params):
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trains", frozen_mask(train, params))

    return optax.partition({"trains": chain, "frozen": optax.set_to_zero()}, labels)


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay pulls to zero: matrices (two dimensions or more).

    Scales, norms and biases, the routers' among them, are left alone whatever their shape: in a stack of scanned layers
    they have two or three dimensions too.
    """

    def decays(path, leaf):
        return leaf.ndim >= 2 and not _name(path).endswith(("scale", "bias", "_norm"))

    return jax.tree.map_with_path(decays, params)


def frozen_mask(train: TrainConfig, params: Any) -> Any:
    """True for the leaves that one of the patterns of ``train.freeze`` fits, as in ``network/layers/attention/*``.

    Raises:
      ConfigError: a pattern that fits no leaf, or nothing left to train.
    """
    patterns = [pattern.strip() for pattern in train.freeze.split(",") if pattern.strip()]
    paths = [_path(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise ConfigError(f"train.freeze={train.freeze!r}: {pattern!r} fits no weight; they are {', '.join(paths)}")
    frozen = {path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)}
    if len(frozen) == len(paths):
        raise ConfigError(f"train.freeze={train.freeze!r}: leaves nothing to train; name fewer weights")
    return jax.tree.map_with_path(lambda path, _: _path(path) in frozen, params)


def stop_frozen(train: TrainConfig, params: Any) -> Any:
    """The parameters, with no gradient through those that are frozen: what they would cost is not computed."""
    if not train.freeze:
        return params
    return jax.tree.map(lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf, params,
                        frozen_mask(train, params))


def _matrix_axes(params: Any) -> Any:
    """Which axes Muon takes for inputs and outputs; None: AdamW's."""

    def axes(path, leaf):
        contracted, made = _MATRICES.get(_name(path), (0, 0))
        stacked = leaf.ndim - contracted - made
        if not contracted or stacked < 0 or _path(path).startswith("schedule"):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(stacked, stacked + contracted)),
                                            tuple(range(stacked + contracted, leaf.ndim)))

    return jax.tree.map_with_path(axes, params)


def trainable_parameters(train: TrainConfig, params: Any) -> int:
    """How many numbers train."""
    if not train.freeze:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    masks = zip(jax.tree.leaves(params), jax.tree.leaves(frozen_mask(train, params)), strict=True)
    return sum(math.prod(leaf.shape) for leaf, frozen in masks if not frozen)


def _path(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _name(path) -> str:
    return jax.tree_util.keystr(path[-1:], simple=True)
