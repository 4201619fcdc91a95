"""What a Python user holds: a network with its parameters, its noise and its tokenizer. ``mdlm_jax.load`` makes one."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.answers import Likelihood
from mdlm_jax.generation import generate, likelihood
from mdlm_jax.generation.prompts import is_single
from mdlm_jax.models import api
from mdlm_jax.models.conditioning import checked_classes
from mdlm_jax.models.config import DTYPES, TransformerConfig
from mdlm_jax.models.hf import families, reader
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards

_SMALL = 1 << 28  # bytes of parameters below which loading shows no progress


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded model.

    Attributes:
      params: the tree of `models.api`.
      description: the network, its token ids and where it came from.
      process: its noise; None for an autoregressive model, which knows no mask.
      tokenizer: `data.tokenizers.Tokenizer`, or None where the files hold none.
      schedule: [V], what a run of the objective genmd4 learned beside the network; else None.
    """

    params: dict
    description: Description
    process: Process | None
    tokenizer: Any = None
    schedule: jax.Array | None = None

    def __repr__(self) -> str:
        """One line, without the weights."""
        from mdlm_jax.models.shapes import parameter_count

        said = self.description
        kind = said.family or self.config.attention
        limit = f", max_length {said.max_length}" if said.max_length else ""
        size = f"{parameter_count(self.config):,} parameters in {said.dtype}"
        return (f"LanguageModel({kind}, {size}, {self.config.layers} layers, width {self.config.d_model}, "
                f"vocabulary {self.config.vocab_size:,}{limit})")

    @property
    def config(self) -> TransformerConfig:
        """The network."""
        return self.description.config

    def logits(self, tokens, attention_mask=None, *, time=None, condition=None, raw: bool = False) -> jax.Array:
        """Scores of every id at every position, [B, L, head_size] float32, on the mesh of the parameters.

        Args:
          tokens: [B, L] integers.
          attention_mask: [B, L], 1 where there is a token and 0 where there is padding; None: no padding.
          time: [B] noise levels, for networks conditioned on them.
          condition: [B] classes, -1 for none, for networks that have them; None: none for all rows.
          raw: the network's own rows. Otherwise row i scores token i, whatever the network was trained with.
        Raises:
          ValueError: another shape, or ids that the embedding has no row for.
        """
        tokens = _checked(tokens, self.config.vocab_size)
        if attention_mask is not None and np.shape(attention_mask) != tokens.shape:
            raise ValueError(f"attention_mask has shape {np.shape(attention_mask)}; it must be {tokens.shape}")
        mask = None if attention_mask is None else np.asarray(attention_mask, np.int32)
        rows, length = tokens.shape
        condition = None if condition is None else checked_classes(condition, self.config.classes, rows)
        tokens, mask, *of_rows = _filled_up(self.config, self.mesh, tokens, mask, time, condition)
        logits = _logits(self.config, raw, self.mesh, self.params, tokens, mask, *of_rows)
        return logits if logits.shape[:2] == (rows, length) else logits[:rows, :length]

    def generate(self, prompts, *, new_tokens: int | None = None, **options):
        """Answers to prompts.

        Args:
          prompts: a string or a row of token ids, or several, of any lengths.
          new_tokens: tokens an answer has at most; None: 128, or as many as there is room for behind its prompt.
          options: those of `generation.options.Options` (decoder, steps, block_length, stop, seed, ...), and numbers
            of the decoder, such as ``temperature=0.7``. ``sampling.registry`` lists the decoders.
        Returns:
          A `generation.generate.Generation` for one prompt, a list for several: its ``str`` is the text.
        Raises:
          ConfigError: what does not fit the model or each other, before anything is compiled.
        """
        return _answered(generate.answer_job(self, prompts, new_tokens, **options), prompts)

    def infill(self, texts, *, hole: str = "<mask>", **options):
        """Texts with their holes filled; what is given stays as it is.

        Args:
          texts: a string in which every ``hole`` stands for one token to be written, or a row of token ids with the
            mask's where one is to be written; or several.
          options: as for `generate`; by default everything is written at once, a row in as many steps as it has holes.
            Rows of other numbers of steps are other batches; ``steps`` puts rows of unequal holes into one.
        Returns, raises: as `generate`, whole texts.
        """
        return _answered(generate.infill_job(self, texts, hole, **options), texts)

    def stream(self, prompts, *, new_tokens: int | None = None, every: str = "block", **options) -> Iterator:
        """As `generate`, all rows as they stand: before the first step, after every ``block`` or ``step``, finished.

        Yields what `generate` returns, with masks where nothing is written yet and ``finish`` None.
        """
        job = generate.answer_job(self, prompts, new_tokens, **options)
        return (found[0] if is_single(prompts) else found for found in generate.snapshots(job, every))

    def log_likelihood(self, prompts, answers, *, draws: int = 128, guidance: float = 0.0, **options) -> Likelihood:
        """log p(answer | prompt) in nats, each encoded apart: exact for causal networks, else a bound by random masks.

        Args:
          prompts: as for `generate`; one may serve several answers.
          answers: one for each.
          draws: masks a pair, a multiple of 8; the standard error is that over them. Answers of one token take one.
          guidance: strength of unsupervised guidance; the figure is then no bound.
          options: seed, row_ids, batch_size, max_length, special.
        Returns:
          `evaluation.answers.Likelihood`.
        Raises:
          ConfigError: what does not fit the model; mixed noise.
        """
        return likelihood.log_likelihood(self, prompts, answers, draws=draws, guidance=guidance, **options)

    @property
    def mesh(self) -> AbstractMesh | None:
        """The mesh that the parameters lie on; None: they lie on one device, or on the host."""
        layout = getattr(self.params["embedding"], "sharding", None)
        return layout.mesh.abstract_mesh if isinstance(layout, NamedSharding) else None


def _answered(job, prompts):
    found = dict(generate.answers(job))
    return found[0] if is_single(prompts) else [found[i] for i in range(len(found))]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(config, raw, mesh, params, tokens, attention_mask, time, condition):
    """On a mesh it must be set: without one the partitioner gathers weights, and kernels do not compile at all."""
    with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
        return api.apply(config, params, tokens, attention_mask=attention_mask, time=time, condition=condition,
                         raw=raw).logits()


def _filled_up(config: TransformerConfig, mesh: AbstractMesh | None, tokens: np.ndarray, mask, *of_rows):
    """Rows and positions that every shard has equally many of; nothing of what is added is seen by what was there."""
    if mesh is None:
        return tokens, mask, *of_rows
    rows, length = tokens.shape
    more, longer = -rows % data_shards(mesh), -length % mesh.shape[LENGTH_AXIS]
    if longer and config.attention == "two_stream":
        raise ValueError(f"tokens: two streams of {length} positions cannot be shared by mesh axis context="
                         f"{mesh.shape[LENGTH_AXIS]}; give a multiple of it")
    if longer:
        mask = np.ones(tokens.shape, np.int32) if mask is None else mask
        mask = np.pad(mask, ((0, 0), (0, longer)))
    mask = None if mask is None else np.pad(mask, ((0, more), (0, 0)), mode="edge")
    of_rows = [None if np.ndim(x) == 0 else jnp.pad(jnp.asarray(x), (0, more), mode="edge") for x in of_rows]
    return np.pad(tokens, ((0, more), (0, longer))), mask, *of_rows


def _checked(tokens, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens are {tokens.dtype}{list(tokens.shape)}; they must be integers [B, L]")
    if not tokens.size:
        raise ValueError(f"tokens have shape {list(tokens.shape)}; give at least one row of one token")
    if not 0 <= tokens.min() <= tokens.max() < vocab_size:
        outside = tokens[(tokens < 0) | (tokens >= vocab_size)].flat[0]
        raise ValueError(f"tokens: {outside} is outside 0..{vocab_size - 1}")
    return tokens.astype(np.int32)


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
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    from mdlm_jax.training import places

    path = places.place(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such directory; give a Hugging Face directory or a run's workdir")
    if places.in_bucket(path) and families.is_hf(path):
        raise ConfigError(f"{path}: a Hugging Face directory must be a folder; copy it here first")
    if families.is_hf(path):
        return _load_hf(path, mesh, dtype, mask_id)
    from mdlm_jax.training import checkpoints

    return load_step(checkpoints.find(path), mesh=mesh, dtype=dtype, mask_id=mask_id)


def without_weights(folder: Path, *, mask_id: int | None = None) -> LanguageModel:
    """What `load` would give of a Hugging Face directory or a step's folder, with shapes in place of the weights.

    For checks before these are read: `generation.generate.answer_job`. The digests of a step are not checked.
    """
    return _of_hf(folder, mask_id) if families.is_hf(folder) else _of_step(folder, mask_id)


def _load_hf(path: Path, mesh, dtype, mask_id) -> LanguageModel:
    model = _of_hf(path, mask_id)
    with _progress(f"loading {path.name}", model.description) as progress:
        params = reader.read(path, model.description, mesh=mesh, dtype=dtype, progress=progress)
    return dataclasses.replace(model, params=params, description=_computing_in(model.description, params))


def _of_hf(path: Path, mask_id: int | None) -> LanguageModel:
    description = families.describe(path)
    if mask_id is not None:
        description = dataclasses.replace(description, mask_id=mask_id)
    process = process_of(description, path)
    return LanguageModel(api.abstract(description.config), description, process, _tokenizer(path, description))


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
                               schedule=weights.get("schedule"))


def _of_step(folder: Path, mask_id: int | None) -> LanguageModel:
    from mdlm_jax.training import checkpoints, saved
    from mdlm_jax.training.build import build_process

    description, shapes = _describe_step(folder), saved.described(folder)
    if mask_id is not None:
        description = dataclasses.replace(description, mask_id=mask_id)
    tokenizer = _tokenizer(folder, None)
    if "family" in checkpoints.read_meta(folder):
        process = process_of(description, folder)
        _give_ids(tokenizer, description)
    else:
        process = build_process(_run_config(folder), tokenizer.vocab_size, description.mask_id)
    return LanguageModel(shapes["network"], description, process, tokenizer, shapes.get("schedule"))


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
        raise ConfigError(f"{folder}: has no tokenizer.json, and is not a converted checkpoint, which may do without")
    network = run.model.transformer(run.model.vocab_size or tokenizer.vocab_size)
    if ids is None:
        ids = {name: getattr(tokenizer, name) for name in ("mask_id", "eos_id", "pad_id")}
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
        weights |= {"network": jax.tree.map(lambda x: x.astype(dtype), weights["network"])}
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


class _progress:
    """A bar in megabytes for models that take a while; nothing for small ones."""

    def __init__(self, title: str, description: Description):
        from mdlm_jax.models.shapes import parameter_count

        self._title, self._shown, self._long = title, None, parameter_count(description.config) * 2 > _SMALL

    def __enter__(self):
        return self._update if self._long else None

    def _update(self, done: int, total: int) -> None:
        from mdlm_jax.training.progress import Progress

        self._shown = self._shown or Progress(total >> 20, desc=self._title, unit="MB")
        self._shown.update(done >> 20)

    def __exit__(self, *exception) -> None:
        if self._shown:
            self._shown.close()


def ids_of(description: Description) -> dict[str, int | None]:
    """The special ids as a dict."""
    return {name: getattr(description, name) for name in ("mask_id", "bos_id", "eos_id", "pad_id")}


def save_checkpoint(directory: Path | str, model: LanguageModel, tokenizer_json: bytes | None = None) -> Path:
    """Writes a model as a checkpoint of ours, which ``load`` reads: step 0 in ``directory``."""
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
