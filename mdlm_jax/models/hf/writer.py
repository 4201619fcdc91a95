"""Parameters to a Hugging Face directory, one tensor at a time.

The directory is built under another name and renamed when it is whole; an existing one is never touched.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.hf import files
from mdlm_jax.models.hf.families import FAMILIES, write_fields
from mdlm_jax.models.hf.reader import copy, get, numpy_dtype
from mdlm_jax.models.hf.rules import Description, Leaf, bind

SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to write: its leaves (several where they are fused) with their index on the stacked axes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[tuple[Leaf, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def leaves_of(description: Description) -> dict[str, Leaf]:
    """The leaves of a network in the layout that is written."""
    return bind(description.config, FAMILIES[description.family].tables(description.config)[0])


def plan(description: Description, dtypes: Mapping[str, np.dtype]) -> list[Tensor]:
    """Every tensor that writing will make, in order. ``dtypes``: of each leaf, by path."""
    grouped: dict[str, list] = {}
    for leaf in leaves_of(description).values():
        for index in leaf.indices():
            grouped.setdefault(leaf.tensor(index), []).append((leaf, index))
    tensors = []
    for name, parts in grouped.items():
        found = {dtypes[leaf.path] for leaf, _ in parts}
        if len(found) > 1:
            names = " and ".join(sorted(dtype.name for dtype in found))
            raise ConfigError(f"{name}: the leaves it is made of are in {names}; give a dtype")
        tensors.append(Tensor(name, parts[0][0].layout.file_shape, found.pop(), tuple(parts)))
    return tensors


def write(
    directory: Path | str,
    description: Description,
    params: dict,
    *,
    dtype: str | None = None,
    extra: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``config.json``, safetensors in shards of at most ``shard_bytes``, their index, and ``extra`` files.

    Args:
      params: the tree of `api.abstract`, jax or numpy arrays; with several processes run it in one that holds them all.
      dtype: to convert to; None: as they are.
      extra: more small files, such as ``tokenizer.json``.
      progress: told (bytes done, bytes in all) after each tensor.
    Raises:
      FileExistsError: the directory is there.
      ConfigError: the family cannot say this network, or the tree is not the network's.
    """
    directory = Path(directory)
    if os.path.lexists(directory):
        raise FileExistsError(f"{directory}: exists already; choose another name")
    wanted = numpy_dtype(dtype)
    leaves = leaves_of(description)
    check_tree(params, leaves)
    tensors = plan(description, {path: wanted or np.dtype(get(params, path).dtype) for path in leaves})
    widest = max((tensor.dtype for tensor in tensors), key=lambda d: d.itemsize)
    raw = write_fields(dataclasses.replace(description, dtype=widest.name))
    partial = directory.with_name(directory.name + ".unfinished")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _write_weights(partial, params, tensors, shard_bytes, progress)
    (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    for name, content in (extra or {}).items():
        (partial / name).write_bytes(content)
    os.rename(partial, directory)
    return directory


def _write_weights(folder: Path, params: dict, tensors: list[Tensor], shard_bytes: int, progress) -> None:
    shards = _cut(tensors, shard_bytes)
    total, done = sum(tensor.size for tensor in tensors), 0
    weights: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = files.SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        by_name = {tensor.name: tensor for tensor in shard}

        def produce(key, by_name=by_name):
            nonlocal done
            done += by_name[key].size
            if progress:
                progress(done, total)
            return _tensor(by_name[key], params)

        files.write_file(folder / name, [(t.name, t.dtype, t.shape) for t in shard], produce)
        weights |= dict.fromkeys(by_name, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (folder / files.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cut(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def _tensor(tensor: Tensor, params: dict) -> np.ndarray:
    """One tensor in the layout of the files."""
    file = np.empty(tensor.shape, tensor.dtype)
    for leaf, index in tensor.parts:
        part = np.ascontiguousarray(_slice(get(params, leaf.path), index))
        theirs, ours = leaf.layout.views(file, part, tuple((0, size) for size in part.shape))
        copy(theirs, ours)
    return file


def _slice(leaf, index: tuple[int, ...]) -> np.ndarray:
    """One layer (and expert) of a leaf, on the host; arrays that lie on one CPU device are looked at in place."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)[index]
    devices = {device.platform for device in leaf.devices()}
    if len(leaf.devices()) == 1 and devices == {"cpu"}:
        return np.asarray(leaf)[index]
    return np.asarray(_pick(leaf, jnp.asarray(index, jnp.int32)) if index else leaf)


@jax.jit
def _pick(leaf: jax.Array, index: jax.Array) -> jax.Array:
    for i in range(index.shape[0]):
        leaf = jax.lax.dynamic_index_in_dim(leaf, index[i], 0, keepdims=False)
    return leaf


def check_tree(params: dict, leaves: dict[str, Leaf]) -> None:
    """ConfigError unless a tree, of arrays or their descriptions, has exactly these leaves."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        found["/".join(str(key.key) for key in path)] = tuple(leaf.shape)
    wanted = {path: leaf.shape for path, leaf in leaves.items()}
    differing = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
    if differing:
        shown = [f"{path} is {found.get(path)} and must be {wanted.get(path)}" for path in differing[:5]]
        raise ConfigError(f"params: must be those of this network: {'; '.join(shown)}"
                          f"{f'; and {len(differing) - 5} more' if len(differing) > 5 else ''}")
