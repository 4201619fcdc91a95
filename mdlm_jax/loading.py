"""Language models from files and into them: Hugging Face directories, runs of ours, converted checkpoints."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models import api
from mdlm_jax.models.config import DTYPES, TransformerConfig
from mdlm_jax.models.hf import families, reader
from mdlm_jax.models.hf.rules import Description

_HUB = re.compile(r"[\w-]+/[\w.-]*[A-Z0-9][\w.-]*")  # as in GSAI-ML/LLaDA-8B-Base; runs/first is none
_SMALL = 1 << 28  # bytes of parameters below which loading shows no progress


def load(
    path: Path | str, *, mesh: Mesh | None = None, dtype: str | None = None, mask_id: int | None = None,
) -> LanguageModel:
    """A model from a Hugging Face directory, or from a run of ours (its workdir, or one of its checkpoints), which may
    be in a bucket, ``gs://BUCKET/NAME``.

    Args:
      mesh: where the parameters go, `models.sharding.make_mesh`; None: whole, on the first device.
      dtype: float32 or bfloat16 (or float64), of parameters and computation; None: as stored.
      mask_id: the mask token, where the files do not name one.
    Raises:
      ConfigError: nothing of either kind is there; tensors that do not fit; a diffusion model without a known mask.
    Examples:
      >>> import mdlm_jax
      >>> model = mdlm_jax.load("runs/first")
      >>> model
      LanguageModel(bidirectional, ... parameters in float32, ... layers, width ..., vocabulary 259, max_length ...)
      >>> model.process.masked_only
      True
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: choose one of {', '.join(map(repr, DTYPES))}")
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"path={path!r}: must be the name of a folder, as in mdlm_jax.load('runs/first')")
    _check_mesh(mesh)
    from mdlm_jax.training import places

    given, path = str(path), places.place(path)
    if not path.is_dir():
        hub = f"; of the Hub first: hf download {given} --local-dir {path.name}" if _HUB.fullmatch(given) else ""
        raise ConfigError(f"{path}: there is no such directory; give a Hugging Face directory or a run's workdir{hub}")
    if places.in_bucket(path) and families.is_hf(path):
        raise ConfigError(f"{path}: a Hugging Face directory must be a folder; copy it here first")
    if families.is_hf(path):
        return _load_hf(path, mesh, dtype, mask_id)
    from mdlm_jax.training import checkpoints

    return load_step(checkpoints.find(path), mesh=mesh, dtype=dtype, mask_id=mask_id)


def _check_mesh(mesh: Any) -> None:
    if mesh is not None and not isinstance(mesh, Mesh):
        sizes = f"config.parse_mesh({mesh!r})" if isinstance(mesh, str) else "{'fsdp': -1}"
        raise ConfigError(f"mesh={mesh!r}: must be a mesh; give models.sharding.make_mesh({sizes})")


def without_weights(folder: Path, *, mask_id: int | None = None) -> LanguageModel:
    """What `load` would give of a Hugging Face directory or a step's folder, with shapes in place of the weights.

    For checks before these are read: `generation.generate.answer_job`. The digests of a step are not checked.
    """
    return _of_hf(folder, mask_id) if families.is_hf(folder) else _of_step(folder, mask_id)


def _load_hf(path: Path, mesh, dtype, mask_id) -> LanguageModel:
    model = _of_hf(path, mask_id)
    from mdlm_jax.models.shapes import parameter_count
    from mdlm_jax.progress import Growing

    large = parameter_count(model.description.config) * 2 > _SMALL
    with Growing(f"loading {path.name}", "MB", shown=large) as shown:
        params = reader.read(path, model.description, mesh=mesh, dtype=dtype,
                             progress=lambda done, total: shown(done >> 20, total >> 20))
    return dataclasses.replace(model, params=params, description=_computing_in(model.description, params))


def _of_hf(path: Path, mask_id: int | None) -> LanguageModel:
    description = _with_mask(families.describe(path), mask_id, path)
    process = process_of(description, path)
    return LanguageModel(api.abstract(description.config), description, process, _tokenizer(path, description))


def _with_mask(description: Description, mask_id: int | None, path: Path) -> Description:
    """With a mask that the files do not name."""
    if mask_id is None or mask_id == description.mask_id:
        return description
    if description.mask_id is not None:
        raise ConfigError(f"mask_id={mask_id!r}: the mask of {path} is {description.mask_id}, as its files say; leave "
                          "it out")
    return dataclasses.replace(description, mask_id=mask_id)


def process_of(description: Description, path: Path) -> Process | None:
    """Masked noise over the ids of a network; None for a causal one without a mask."""
    config = description.config
    if description.mask_id is None:
        if config.attention == "causal":
            return None
        raise ConfigError(f"{path}: its files name no mask token; give mask_id=")
    if not 0 <= description.mask_id < config.vocab_size:
        raise ConfigError(f"mask_id={description.mask_id}: must lie in [0, {config.vocab_size}), the embedding's rows")
    columns = None if config.head_size == config.vocab_size else config.head_size
    return Process(config.vocab_size, description.mask_id, head_size=columns)


def load_step(folder: Path, *, mesh: Mesh | None = None, dtype=None, mask_id: int | None = None) -> LanguageModel:
    """`load` of a step that `training.checkpoints.find` gave: averaged weights where there are some."""
    model = _of_step(folder, mask_id)
    weights = _restored(folder, model.config, mesh, dtype)
    described = _computing_in(model.description, weights["network"], keep=dtype is None)
    return dataclasses.replace(model, params=weights["network"], description=described,
                               schedule=weights.get("schedule"), **_beside(folder, described, weights, dtype))


def _of_step(folder: Path, mask_id: int | None) -> LanguageModel:
    from mdlm_jax.training import checkpoints, saved
    from mdlm_jax.training.build import build_process

    description, shapes = _with_mask(_describe_step(folder), mask_id, folder), saved.described(folder)
    tokenizer = _tokenizer(folder, None)
    if "family" in checkpoints.read_meta(folder):
        process = process_of(description, folder)
        _give_ids(tokenizer, description)
    else:
        assert description.mask_id is not None  # which every run of ours has
        process = build_process(_run_config(folder), tokenizer.vocab_size, description.mask_id)
    return LanguageModel(shapes["network"], description, process, tokenizer, shapes.get("schedule"),
                         **_beside(folder, description, shapes))


def _beside(folder: Path, description: Description, weights: dict, dtype: str | None = None) -> dict:
    """The small network of a run that trained one, by its field of `LanguageModel`."""
    from mdlm_jax.training.beside import stored_twin, taken

    twin = stored_twin(folder)
    if twin is not None and dtype is not None:
        twin = dataclasses.replace(twin, dtype=dtype)
    return taken(_run_config(folder).train.objective, description.config, weights, twin, description.mask_id)


def describe_run(path: Path) -> tuple[Path, Description]:
    """The step's folder and what it holds, without its weights; the family of a run of ours is ""."""
    from mdlm_jax.training import checkpoints

    folder = checkpoints.find(path)
    return folder, _describe_step(folder)


def _describe_step(folder: Path) -> Description:
    from mdlm_jax.training import checkpoints

    run, tokenizer, meta = _run_config(folder), _tokenizer(folder, None), checkpoints.read_meta(folder)
    ids = meta.get("ids")  # of a converted checkpoint
    if tokenizer is None and not (run.model.vocab_size and ids):
        raise ConfigError(f"{folder}: has no tokenizer.json, which only converted checkpoints may lack; put it there")
    network = run.model.transformer(run.model.vocab_size or tokenizer.vocab_size)
    if ids is None:
        ids = {name: getattr(tokenizer, name) for name in ("mask_id", "eos_id", "pad_id")}
        if run.train.objective.partition(":")[0] == "levenshtein":
            ids |= {"delete_id": network.head_size - 2, "insert_id": network.head_size - 1}
    length = meta.get("max_length", run.data.length)
    return Description(network, meta.get("family", ""), **ids, max_length=length)


def _run_config(folder: Path):
    from mdlm_jax.config import freeze

    try:
        return freeze(families.read_json(folder / "config.json"))
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None


def saved_network(folder: Path) -> dict:
    """The parameters of a step's folder as ``ShapeDtypeStruct``s, as they were saved; averaged where there are some."""
    from mdlm_jax.training import saved

    return saved.described(folder)["network"]


def restore_network(folder: Path, network: TransformerConfig, mesh: Mesh | None = None, dtype=None) -> dict:
    """The parameters of a step's folder, those that `saved_network` describes."""
    return _restored(folder, network, mesh, dtype)["network"]


def _restored(folder: Path, network: TransformerConfig, mesh: Mesh | None, dtype) -> dict:
    """What the run trained: the network, and where it learned one, the schedule."""
    from mdlm_jax.training import saved

    weights = saved.weights(folder, _run_config(folder).train, network, mesh)
    if dtype is not None:
        weights |= {name: jax.tree.map(lambda x: x.astype(dtype), weights[name]) for name in ("network", "twin")
                    if name in weights}
    return weights


def _computing_in(description: Description, params: dict, keep: bool = False) -> Description:
    """The network computes in the dtype its matrices are in (``keep``: as its configuration says)."""
    stored = params["embedding"].dtype.name
    if keep:
        return dataclasses.replace(description, dtype=stored)
    if stored not in DTYPES:
        raise ConfigError(f"dtype {stored}: nothing is computed in it here; load with dtype='bfloat16' or 'float32'")
    return dataclasses.replace(description, config=dataclasses.replace(description.config, dtype=stored), dtype=stored)


def _tokenizer(folder: Path, description: Description | None):
    """The ``tokenizer.json`` of a folder; a Hugging Face description says which ids are special."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from mdlm_jax.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if description is not None:
        _give_ids(tokenizer, description)
    return tokenizer


def _give_ids(tokenizer, description: Description) -> None:
    """The tokenizer guesses its special ids by name; the checkpoint knows."""
    for name in ("mask_id", "eos_id", "pad_id"):
        if tokenizer is not None and getattr(description, name) is not None:
            setattr(tokenizer, name, getattr(description, name))


def ids_of(description: Description) -> dict[str, int | None]:
    """The special ids as a dict."""
    return {field.name: getattr(description, field.name) for field in dataclasses.fields(description)
            if field.name.endswith("_id")}


def beside_network(model: LanguageModel) -> list[str]:
    """Fields of what a run learned beside its network: a joint layer, a schedule, ..."""
    names = [field.name for field in dataclasses.fields(model) if field.default is None and field.name != "tokenizer"]
    return [name for name in names if getattr(model, name) is not None]


def save_checkpoint(directory: Path | str, model: LanguageModel, tokenizer_json: bytes | None = None) -> Path:
    """Writes a model as a checkpoint of ours, which ``load`` reads: step 0 in ``directory``.

    Raises:
      ConfigError: the model has more than its network, for which such a checkpoint has no room.
    """
    for name in beside_network(model):
        raise ConfigError(f"{name}: was learned beside the network, and a checkpoint that is saved so has no room for "
                          f"it; keep the run, or save the network alone, dataclasses.replace(model, {name}=None)")
    from mdlm_jax.config import RunConfig, to_dict
    from mdlm_jax.config.model import ModelConfig, from_transformer
    from mdlm_jax.training.checkpoints import Checkpoints

    run = dataclasses.replace(RunConfig(), model=ModelConfig(**from_transformer(model.config)))
    description = model.description
    meta = {"family": description.family, "ids": ids_of(description), "max_length": description.max_length}
    files: dict[str, str | bytes] = {"config.json": json.dumps(to_dict(run), indent=2) + "\n"}
    if tokenizer_json is not None:
        files["tokenizer.json"] = tokenizer_json
    return Checkpoints(directory).save(0, {"trainable": {"network": model.params}}, meta, files)
