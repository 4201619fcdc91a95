"""What launch.convert does once its options are checked. It runs on the CPU: numbers are moved, none computed."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import (
    beside_network,
    describe_run,
    ids_of,
    restore_network,
    save_checkpoint,
    saved_network,
    without_weights,
)
from mdlm_jax.models.hf import families, reader, writer
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.progress import Growing
from mdlm_jax.sampling import registry

_LINES = 60
_COMPUTED = ("float32", "bfloat16")


def main(options) -> None:
    """Converts in the direction that the source asks for."""
    jax.config.update("jax_platforms", "cpu")
    if options.description is None:
        _to_hf(options)
    else:
        _from_hf(options)


def _from_hf(options) -> None:
    description = options.description
    if options.mask_id is not None:
        description = dataclasses.replace(description, mask_id=options.mask_id)
    _check_mask(description, options.mask_id is not None)
    stored, leaves = reader.check(options.source, description)
    _announce(description, [(name, s.code, s.shape, s.size) for name, s in stored.items()], options.dry_run)
    if options.dry_run:
        return
    with Growing("reading", "MB") as bar:
        params = reader.read(options.source, description, dtype=options.dtype, progress=_megabytes(bar))
    tokenizer = options.source / "tokenizer.json"
    model = LanguageModel(params, _computing_as_stored(description, params), None)
    print("writing ...", flush=True)
    partial = options.target.with_name(options.target.name + ".unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(partial, model, tokenizer.read_bytes() if tokenizer.is_file() else None)
    partial.rename(options.target)
    print(f"wrote {options.target}; read it with mdlm_jax.load({str(options.target)!r})")


def _check_mask(description: Description, given: bool) -> None:
    """ConfigError for a mask that has no row; a line where a diffusion network has none at all."""
    mask_id, rows = description.mask_id, description.config.vocab_size
    if mask_id is not None and not 0 <= mask_id < rows:
        source = "--mask_id" if given else "the files' mask_token_id"
        raise ConfigError(f"{source}={mask_id}: must lie in [0, {rows}), the embedding's rows; give --mask_id")
    if mask_id is None and description.config.attention != "causal":
        print("note     no file names the mask token: give --mask_id, or mask_id= to mdlm_jax.load")


def _computing_as_stored(description: Description, params: dict) -> Description:
    """With the dtype in which `mdlm_jax.load` computes the source; float32 where it would have to be told one."""
    stored = params["embedding"].dtype.name
    dtype = stored if stored in _COMPUTED else "float32"
    return dataclasses.replace(description, config=dataclasses.replace(description.config, dtype=dtype))


def _to_hf(options) -> None:
    folder, description = describe_run(options.source)
    if options.mask_id is not None:
        description = dataclasses.replace(description, mask_id=options.mask_id)
    _check_mask(description, options.mask_id is not None)
    description = _in_a_family(description)
    saved, leaves, wanted = saved_network(folder), writer.leaves_of(description), reader.numpy_dtype(options.dtype)
    writer.check_tree(saved, leaves)
    planned = writer.plan(description, {path: wanted or np.dtype(reader.get(saved, path).dtype) for path in leaves})
    _announce(description, [(t.name, t.dtype.name, t.shape, t.size) for t in planned], options.dry_run)
    _warn(folder, describe_run(folder)[1].family, description)
    if options.dry_run:
        return
    params = restore_network(folder, description.config)
    with Growing("writing", "MB") as bar:
        extra = _tokenizer(folder)
        writer.write(options.target, description, params, dtype=options.dtype, extra=extra, progress=_megabytes(bar))
    print(f"wrote {options.target}, family {description.family}")


def _warn(folder: Path, family: str, description: Description) -> None:
    """Lines on what the format has no room for, and on what another family changes.

    Args:
      folder: of the step. family: that of the checkpoint, "" of a run of ours.
    """
    model = without_weights(folder) if not family else None  # a converted one is a network alone
    for name in beside_network(model) if model else ():
        takers = " or ".join(one for one in registry.DECODERS
                             if name in {field.name for field in dataclasses.fields(registry.decoder_class(one))})
        print(f"note     left out: {name}, which the run learned beside its network and the format has no room for"
              + (f"; keep the run for the decoder {takers}" if takers else ""))
    if model and not model.process.masked_only:
        print("note     left out: the noise; the format knows masks alone, and the run was trained on others")
    before, after = (registry.usual(name, description.config.attention) for name in (family, description.family))
    if before != after:
        blocks = " and block_length=0" if after.block_length else ""
        print(f"note     family {description.family} is decoded by {_said(after)}, unless told otherwise\n"
              f"         the run is decoded by {_said(before)}: give decoder={before.decoder}{blocks}", flush=True)


def _said(usual: registry.Usual) -> str:
    temperature = registry.entries()[usual.decoder].numbers["temperature"].default
    return usual.decoder + (", which is greedy" if temperature == 0 else f" at temperature {temperature:g}")


def _in_a_family(description: Description) -> Description:
    """In the family it came from where that can still say the network, else in the first that can."""
    try:
        if description.family:
            families.write_fields(description)
            return description
    except ConfigError:
        pass  # the network was changed since; the search below says what is lost where no family can say it
    found = families.family_of(description.config, ids_of(description))
    return dataclasses.replace(found, max_length=description.max_length)


def _tokenizer(folder: Path) -> dict[str, bytes]:
    """A ``tokenizer.json`` that other programs can read; those of bytes and languages are our own."""
    path = folder / "tokenizer.json"
    if not path.is_file() or not isinstance(json.loads(path.read_text(encoding="utf-8")).get("model"), dict):
        return {}
    return {"tokenizer.json": path.read_bytes()}


def _announce(description, rows: list[tuple], whole: bool) -> None:
    total, count = sum(row[3] for row in rows), sum(math.prod(row[2]) for row in rows)
    if whole:
        shown = rows if len(rows) <= _LINES else [*rows[: _LINES // 2], None, *rows[-_LINES // 2 :]]
        for row in shown:
            if row is None:
                print(f"  ... {len(rows) - _LINES} more")
                continue
            print(f"  {row[0]:<64} {row[1]:>8} {'x'.join(map(str, row[2])):>18} {row[3] / 1e6:>10.2f} MB")
    ids = ", ".join(f"{name} {value}" for name, value in ids_of(description).items() if value is not None)
    print(f"family {description.family}: {len(rows)} tensors, {count:,} parameters, {total / 1e9:.3f} GB; "
          f"{ids or 'no special ids'}", flush=True)


def _megabytes(bar: Growing):
    """A follower of (bytes done, bytes in all)."""
    return lambda done, total: bar(done >> 20, total >> 20)
