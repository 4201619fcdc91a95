"""What a run that starts from a checkpoint has from it: the network and the tokenizer. Never imports jax."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.config.data import is_images
from mdlm_jax.config.model import ModelConfig, from_transformer
from mdlm_jax.config.process import ProcessConfig
from mdlm_jax.config.train import beside, is_joint, is_taught
from mdlm_jax.data import trajectories
from mdlm_jax.data.tokenizers import Tokenizer, load_tokenizer
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import families
from mdlm_jax.models.shapes import shapes
from mdlm_jax.training import checkpoints, manifest, places
from mdlm_jax.training.checkpoints import Checkpoints

from ._workdir import read_config

_OWN = ("attention", "block_length", "dropout", "dtype", "remat", "backend", "moe_balance_loss",
        "moe_z_loss")  # the recipe's: how the weights are trained, not what they are
_ADDED = ("latent",)  # the recipe's where the checkpoint has none: fresh weights beside its own
_TABLES = ("vocab_size", "head_size")  # the recipe's where it gives them
_SEEN = ("attention", "block_length")
_SHOWN = 5


def network_fields(text: str, model: dict, stays: bool = False) -> dict:
    """The fields of the model section that come from the checkpoint ``text``, over those of a recipe, ``model``.

    Empty where there is no checkpoint: that is told by `check_start`. ``stays``: the network is used as it is, or
    teaches as it is, with the attention that it was trained for.
    """
    found = _model_of(text)
    if found is None:
        return {}
    if found.attention == "causal" and found.vocab_size:
        tokenizer = stored_tokenizer(text)
        if tokenizer is not None and tokenizer.vocab_size > found.vocab_size:  # which adds the mask: a row for it
            found = dataclasses.replace(found, vocab_size=0, head_size=0)
    return {name: value for name, value in dataclasses.asdict(found).items()
            if (name not in _OWN or stays and name in _SEEN) and not (name in _TABLES and model.get(name))
            and not (name in _ADDED and not value)}


def check_start(config: RunConfig) -> None:
    """Reads small files alone.

    Raises:
      ConfigError: nothing is at train.init_from, its network is another (naming the fields), or its tokenizer is.
    """
    text = config.train.init_from
    there = _model_of(text)
    if there is None:
        raise ConfigError(f"train.init_from={text!r}: {_missing(text)}; give a Hugging Face directory or a run's "
                          "workdir")
    if config.train.twin:
        _check_twin(config)
    if beside(config.train.objective) or is_taught(config.train.objective):
        _check_stays(config, there)
        _check_noise(config, there)
        _check_positions(config, there)
    if is_joint(config.train.objective):
        _check_trajectories(config, there)
    tokenizer, spec = stored_tokenizer(text), config.data.tokenizer
    if spec == "byte" and brings_tokenizer(config):
        pass  # the source has its own, which `agree` sees
    elif tokenizer is not None and not spec.startswith("bpe:"):
        agree(config, tokenizer, named_tokenizer(spec))
    ids = tokenizer.vocab_size if tokenizer else there.vocab_size or config.model.vocab_size
    if ids and not _opened(there, config.model):
        _check_network(text, there, config.model, ids)


def _missing(text: str) -> str:
    return f"{text} holds no checkpoint" if places.place(text).is_dir() else "there is no such directory"


def _check_twin(config: RunConfig) -> None:
    """ConfigError where train.twin is no autoregressive run, or of another tokenizer than train.init_from."""
    text, start, folder = config.train.twin, config.train.init_from, _folder(config.train.twin)
    if folder is None:
        raise ConfigError(f"train.twin={text!r}: {_missing(text)}; give the workdir of a run of "
                          "train.objective=autoregressive")
    if families.is_hf(folder):
        raise ConfigError(f"train.twin={text!r}: is a published model, of which nothing tells what stands before a "
                          "row; give the workdir of a run of train.objective=autoregressive")
    there = read_config(folder / "config.json")
    if there.train.objective != "autoregressive":
        raise ConfigError(f"train.twin={text!r}: is a run of train.objective={there.train.objective}; give one of "
                          "autoregressive, whose network predicts the next token")
    if there.model.classes:
        raise ConfigError(f"train.twin={text!r}: has model.classes={there.model.classes}, and nobody tells it any; "
                          "give one without")
    if 0 < there.model.learned_positions < config.data.length:
        raise ConfigError(f"data.length={config.data.length}: train.twin={text!r} learned "
                          f"{there.model.learned_positions} positions; lower it")
    own, other = stored_tokenizer(start), stored_tokenizer(text)
    if own is None or other is None or not own.same_as(other):
        raise ConfigError(f"train.twin={text!r}: has another tokenizer than train.init_from={start!r}; give two "
                          "runs on the same one")


def twin_network(config: RunConfig, ids: int) -> TransformerConfig | None:
    """The shape of the network of train.twin, over a tokenizer of ``ids``; None where there is none."""
    there = _model_of(config.train.twin) if config.train.twin else None
    return None if there is None else there.transformer(there.vocab_size or ids)


def _check_stays(config: RunConfig, there: ModelConfig) -> None:
    """ConfigError where the network that stays is to be read otherwise than it was trained."""
    for name in _SEEN:
        if getattr(config.model, name) != getattr(there, name):
            raise ConfigError(f"model.{name}={getattr(config.model, name)!r}: the network of train.init_from stays as "
                              f"it is, with {getattr(there, name)!r}; leave it out")


def _check_noise(config: RunConfig, model: ModelConfig) -> None:
    """ConfigError where the network that stays, or teaches, was trained on other noise than it is to see; schedules
    matter where it reads the time."""
    folder, here = _folder(config.train.init_from), config.process
    there = ProcessConfig() if families.is_hf(folder) else read_config(folder / "config.json").process
    told = model.conditioning == "time" and not families.is_hf(folder)
    names = (("family", "mixing") if is_taught(config.train.objective) else ()) + (("schedule", "eps") if told else ())
    for name in names:
        if getattr(here, name) != getattr(there, name):
            raise ConfigError(f"process.{name}={getattr(here, name)!r}: the network of train.init_from was trained "
                              f"with {getattr(there, name)!r}; take one that was trained so, or set it to that")


def _check_positions(config: RunConfig, there: ModelConfig) -> None:
    """ConfigError where the network that stays has learned fewer positions than rows would have."""
    if 0 < there.learned_positions < config.data.length:
        raise ConfigError(f"data.length={config.data.length}: the network of train.init_from stays as it is, and has "
                          f"learned {there.learned_positions} positions; lower it to that")


def length_notes(config: RunConfig) -> list[str]:
    """A line for the user where the network that stays was trained on rows of another length."""
    if not beside(config.train.objective):
        return []
    folder, length = _folder(config.train.init_from), config.data.length
    if families.is_hf(folder):
        made_for = min(length, families.describe(folder).max_length or length)  # shorter rows are usual there
    else:
        meta = checkpoints.read_meta(_step(config.train.init_from))
        made_for = read_config(folder / "config.json").data.length
        if "max_length" in meta:  # of a converted checkpoint
            made_for = min(length, meta["max_length"] or length)
    return [] if made_for == length else [
        f"data.length={length}: the network of train.init_from was trained on rows of {made_for} tokens, and knows "
        f"others less well, so that what is learnt beside it may be of no use there; set data.length={made_for}"]


def _check_trajectories(config: RunConfig, there: ModelConfig) -> None:
    """ConfigError where the network that stays is not the one that wrote the trajectories, or wrote by another law than
    the layer would."""
    source, meta = config.data.source, trajectories.read_meta(trajectories.folder_of(config.data.source))
    if meta.get("weights") != weights_digest(config.train.init_from):
        raise ConfigError(f"data.source={source!r}: was written by other weights than those of train.init_from="
                          f"{config.train.init_from!r}; let these write some with launch.trajectories")
    law = {name: meta[name] for name, plain in (("temperature", 1.0), ("top_p", 1.0)) if meta[name] != plain}
    if meta["block_length"] not in (None, there.block_length if there.attention == "block_causal" else None):
        law["block_length"] = meta["block_length"]
    if config.train.on_policy and law:
        said = ", ".join(f"{name}={value}" for name, value in law.items())
        raise ConfigError(f"train.on_policy={config.train.on_policy}: the layer would draw otherwise than the "
                          f"trajectories were written ({said}); write some without that, or leave it out")


def weights_digest(text: str) -> str:
    """What tells one network from another under the same name, without a pass over the weights."""
    folder = _folder(text)
    if not families.is_hf(folder):
        return hashlib.sha256((_step(text) / manifest.NAME).read_bytes()).hexdigest()
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json"))
    return hashlib.sha256(repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns)
                                for file in files]).encode()).hexdigest()


def agree(config: RunConfig, stored: Tokenizer | None, tokenizer: Tokenizer) -> None:
    """ConfigError where the run's tokenizer is not the one that the checkpoint's weights know."""
    if stored is not None and not stored.same_as(tokenizer):
        text = config.train.init_from
        raise ConfigError(f"data.tokenizer={config.data.tokenizer!r}: is another tokenizer than that of "
                          f"train.init_from={text!r}, whose weights know no other; set it to "
                          f"{_folder(text) / 'tokenizer.json'}")


def stored_tokenizer(text: str) -> Tokenizer | None:
    """That of the checkpoint; None where its files hold none."""
    folder = _folder(text)
    file = folder and folder / "tokenizer.json"
    return load_tokenizer(file) if file and file.is_file() else None


def brings_tokenizer(config: RunConfig) -> bool:
    """Whether the source has a tokenizer of its own."""
    source = config.data.source
    return source.startswith(("language:", "prepared:", "mixture:", "trajectories:")) or is_images(source)


def named_tokenizer(spec: str) -> Tokenizer:
    """That of ``data.tokenizer``, unless it is yet to be trained."""
    from mdlm_jax.data.tokenizers import make_tokenizer

    return make_tokenizer(spec, lambda: ())


def _folder(text: str) -> Path | Any:
    """Where config.json and tokenizer.json are: a Hugging Face directory, a workdir, or the newest step; None where
    there is none, which `check_start` refuses."""
    path = places.place(text)
    return path if (path / "config.json").is_file() else _step(text)


def _step(text: str) -> Path | Any:
    """The newest step of a run, or the step itself; None where there is none."""
    path = places.place(text)
    if (path / manifest.NAME).is_file():
        return path
    checkpoints = Checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    steps = checkpoints.steps()
    return checkpoints.path(steps[-1]) if steps else None


def _model_of(text: str) -> ModelConfig | None:
    folder = _folder(text)
    if folder is None:
        return None
    if not families.is_hf(folder):
        return read_config(folder / "config.json").model
    return ModelConfig(**from_transformer(families.describe(folder).config))


def _opened(there: ModelConfig, here: ModelConfig) -> bool:
    """A causal network that the run opens has a table with or without the mask's row (`models.adapt`)."""
    return there.attention == "causal" != here.attention


def _check_network(text: str, there: ModelConfig, here: ModelConfig, ids: int) -> None:
    if not there.latent:
        there = dataclasses.replace(there, latent=here.latent)
    networks = [model.transformer(model.vocab_size or ids) for model in (there, here)]
    if shapes(networks[0]) == shapes(networks[1]):
        return
    old, new = map(from_transformer, networks)
    differing = [name for name in old | new if name not in _OWN and old.get(name) != new.get(name)]
    shown = [f"model.{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in differing[:_SHOWN]]
    more = f", and {len(differing) - _SHOWN} more fields" if len(differing) > _SHOWN else ""
    raise ConfigError(f"train.init_from={text!r}: {', '.join(shown)}{more}; leave them out, and the checkpoint's hold")
