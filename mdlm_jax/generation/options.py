"""What `LanguageModel.generate`, ``infill`` and ``stream`` can be told, and what follows from it for a model."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser, ScheduledDenoiser
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling import own, registry
from mdlm_jax.sampling.ancestral import LearnedScheduleAncestral
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.registry import Usual

LEFT_TO_RIGHT = ("causal", "permutation")  # contracts that write one token after another


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a call; its other keywords are numbers of the decoder (temperature, thresholds, ...).

    Attributes:
      decoder: a name of `sampling.registry`, or a decoder; None: what suits the model's family.
      steps: for all new tokens, shared evenly by their blocks; None: as many as new tokens.
      block_length: tokens that are written together, block after block; 0: everything at once; None: the family's way.
      cache: one of `sampling.caching.CACHES`, with its numbers or without, as in "dual:8"; None: block for block-causal
        and causal networks, else none.
      grid: of a block's times, `sampling.grid`; None: the decoder's own.
      label: the class of every row, or one for each, for networks with classes; -1: none. None: none for all.
      guidance: strength w: with ``label`` towards the class, p(x | class)^(1 + w) / p(x)^w, else unsupervised, towards
        the prompt, p(x | prompt)^(1 + w) / p(x | masks)^w.
      stop: strings that end an answer; looked for after each block. The text is cut before them. The name of a special
        token stands for that token as well.
      stop_id: a token that ends an answer, or several; "eos": the model's end of text; None: none does.
      suppress: ids that are never written.
      bias: id -> nats added to its logit.
      seed: with the row ids it decides every draw: not the batches, not the devices.
      row_ids: of the rows; None: 0, 1, 2, ...
      batch_size: rows at a time.
      max_length: positions that a prompt and its answer may take; None: what the model was made for.
      special: names of special tokens in a prompt stand for those tokens, as chat templates want it.
      trace: keep the canvas after every step.
      twin: an autoregressive `LanguageModel` of the same tokenizer, for the decoder copula.
    """

    decoder: Any = None
    steps: int | None = None
    block_length: int | None = None
    cache: str | None = None
    grid: str | np.ndarray | None = None
    label: int | Sequence[int] | None = None
    guidance: float = 0.0
    stop: Sequence[str] = ()
    stop_id: int | str | Sequence[int | str] | None = "eos"
    suppress: Sequence[int] = ()
    bias: Mapping[int, float] | None = None
    seed: int = 0
    row_ids: Sequence[int] | None = None
    batch_size: int = 32
    max_length: int | None = None
    special: bool = False
    trace: bool = False
    twin: Any = None


def split(given: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The options, and the decoder's numbers among the keywords of a call."""
    names = {field.name for field in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in given.items() if name in names})
    for name, least in (("batch_size", 1), ("steps", 1), ("block_length", 0), ("max_length", 1)):
        value = getattr(options, name)
        if value is not None and (not is_whole(value) or value < least):
            raise ConfigError(f"{name}={value!r}: must be a whole number of at least {least}")
    if not is_whole(options.seed) or not 0 <= options.seed < 2**32:
        raise ConfigError(f"seed={options.seed!r}: must be a whole number in [0, 2^32)")
    check_guidance(options.guidance)
    stop = several("stop", options.stop, "strings")
    for text in stop:
        if not isinstance(text, str):
            raise ConfigError(f"stop={text!r}: must be a string; stop_id takes a token")
    if "" in stop:
        raise ConfigError("stop: holds an empty string, which every text begins with; leave it out")
    lists: dict[str, Any] = {"stop": stop, "stop_id": several("stop_id", options.stop_id, "ids"),
                             "suppress": several("suppress", options.suppress, "ids")}
    if options.row_ids is not None:
        lists["row_ids"] = several("row_ids", options.row_ids, "whole numbers")
    for token, nats in _biases(options.bias):
        if not is_number(nats):
            raise ConfigError(f"bias: {nats!r} for the id {token!r}; must be nats, a number")
    return dataclasses.replace(options, **lists), {name: value for name, value in given.items() if name not in names}


def several(name: str, value, what: str) -> tuple:
    """One or several as a tuple; None: none.

    Raises:
      ConfigError: a single thing that is no string where a list is wanted.
    """
    if value is None:
        return ()
    if isinstance(value, str) or name == "stop_id" and is_whole(value):
        return (value,)
    try:
        return tuple(value)
    except TypeError:
        raise ConfigError(f"{name}={value!r}: must be a list of {what}") from None


def check_guidance(guidance) -> None:
    """Refuses what is no finite number of at least 0."""
    if not is_number(guidance) or not 0 <= guidance < float("inf"):
        raise ConfigError(f"guidance={guidance!r}: must be a finite number of at least 0, which is none")


def _biases(bias):
    if bias is not None and not isinstance(bias, Mapping):
        raise ConfigError(f"bias={bias!r}: must be a dict of nats by id, as in {{7: -2.5}}")
    return (bias or {}).items()


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model and the loop's arguments for it.

    Attributes:
      denoise, params, decoder: of `sampling.loop`.
      process: the model's noise; of a causal model without any, masks alone, with an id beyond its table.
      block_length: None: everything at once. ``cache``, ``bias``: of the loop.
      stop_ids: tokens that end an answer; stop_tokens: special ones that are named among the stop strings.
      lead: a token that stands before every row for the network alone, which is how our causal ones begin; or None.
    """

    denoise: Any
    params: Any
    decoder: Any
    process: Process
    block_length: int | None
    cache: str
    stop_ids: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    bias: jax.Array | None
    lead: int | None = None

    @property
    def mask_id(self) -> int:
        return self.process.mask_id

    @property
    def stop_id(self) -> int | None:
        """The one that the loop itself looks for."""
        return self.stop_ids[0] if self.stop_ids else None

    @property
    def blind(self) -> bool:
        """Whether the first token of a row cannot be scored: nothing stands before it."""
        return self.denoise.shifted and not isinstance(self.denoise, CausalDenoiser) and self.lead is None


def sampler(model, options: Options, numbers: Mapping[str, Any]) -> Sampler:
    """The model as the options want it.

    Args:
      model: a `LanguageModel`.
    Raises:
      ConfigError: an unknown decoder or option, a number that the decoder refuses, blocks or ids that do not fit the
        network.
    """
    process = model.process or Process(model.config.vocab_size + 1, model.config.vocab_size,
                                       head_size=model.config.head_size)
    if process.mask_id is None:
        raise ConfigError("process: has no mask, and decoding begins with masks; give one")
    usual = registry.usual(model.description.family, model.config.attention)
    decoder = _decoder(model, process, options, numbers, usual)
    columns = _columns(model, process)
    read = max([columns, *(1 + column for column in decoder.edits)])
    denoise, params = _network(model, process, read)
    block_length, cache = _blocks(denoise, decoder, options, usual)
    lead = None
    if isinstance(denoise, CausalDenoiser) and cache != "none":
        denoise, lead = Denoiser(model.config, read, process), process.mask_id
    if options.steps is not None and not decoder.reads_steps:
        raise ConfigError(f"steps={options.steps}: {type(decoder).__name__} takes as many as it needs; leave them out")
    asked = several("stop_id", options.stop_id, "ids")
    named = [_eos(model, columns) if token == "eos" else token for token in asked]
    stop_ids = tuple(dict.fromkeys(token for token in named if token is not None))
    ids = {"stop_id": stop_ids, "suppress": options.suppress, "bias": options.bias or {}}
    for name, values in ids.items():
        for value in values:
            if not is_whole(value) or not 0 <= value < columns:
                raise ConfigError(f"{name}={value!r}: must be an id of the head, 0..{columns - 1}")
    stop_tokens = _stop_tokens(model, options, process.mask_id)
    bias = _bias(options, columns, process, [column for column in decoder.edits if column >= columns])
    return Sampler(denoise, params, decoder, process, block_length, cache, stop_ids, stop_tokens, bias, lead)


def _stop_tokens(model, options: Options, mask_id: int) -> tuple[int, ...]:
    """Special tokens that the stop strings name: no text shows them, so no string is ever found there."""
    if options.stop and model.tokenizer is None:
        raise ConfigError("stop: looks for strings, and the model's files hold no tokenizer.json; use stop_id")
    special = getattr(model.tokenizer, "special", {})
    for text in options.stop:
        name = next((name for name in special if name in text), text)
        if name != text:
            raise ConfigError(f"stop={text!r}: holds the name of the special token {name}, which no text shows; give "
                              "that name alone")
    return tuple(special[text] for text in options.stop if text in special and special[text] != mask_id)


def _network(model, process: Process, columns: int):
    """What the loop calls, and its parameters. ``columns``: of the head, that are read."""
    if model.config.attention == "two_stream":
        raise ConfigError("model.attention='two_stream': is for training; load it as block_causal or permutation")
    if model.schedule is not None:
        weights = {"network": model.params, "schedule": model.schedule}
        return ScheduledDenoiser(model.config, columns), weights
    if model.config.attention == "causal" and not model.description.family:
        return CausalDenoiser(model.config, process.mask_id, columns), model.params
    return Denoiser(model.config, columns, process), model.params


def _columns(model, process: Process) -> int:
    """Ids that may be drawn: those with a column of the head and a name in the tokenizer."""
    named = process.num_columns if model.tokenizer is None else model.tokenizer.vocab_size
    return min(process.num_columns, named, model.config.head_size)


def _eos(model, columns: int) -> int | None:
    """The end of text, where the model can write it."""
    found = model.description.eos_id
    found = getattr(model.tokenizer, "eos_id", None) if found is None else found
    return found if found is not None and found < columns else None


def _blocks(denoise, decoder: Decoder, options: Options, usual: Usual) -> tuple[int | None, str]:
    """Block length and cache."""
    size = options.block_length
    if denoise.contract in LEFT_TO_RIGHT and not _reordered(denoise.contract, decoder):
        if size not in (None, 1):
            raise ConfigError(f"block_length={size}: a {denoise.contract} network writes one token after another; "
                              "leave it out")
        full = isinstance(denoise, CausalDenoiser) and denoise.network.learned_positions  # no room for what leads
        cached = denoise.contract == "causal" and not full and decoder.reach
        return 1, options.cache or ("block" if cached else "none")
    if denoise.contract == "block_causal":
        if size == 0:
            raise ConfigError(f"block_length=0: the network attends in blocks of {denoise.network.block_length} and "
                              "cannot write everything at once; leave it out")
        cached = not denoise.timed and decoder.reach
        return size or denoise.network.block_length, options.cache or ("block" if cached else "none")
    size = usual.block_length if size is None else size
    return size or None, options.cache or "none"


def _reordered(contract: str, decoder) -> bool:
    """Whether the decoder, or its class, has an order of its own for the network."""
    return contract == "permutation" and decoder.ordered


def sees_both_ways(model, options: Options) -> bool:
    """Whether what stands right of a hole is seen, as the options have it decoded."""
    if model.config.attention == "bidirectional":
        return True
    chosen = options.decoder
    chosen = registry.decoder_class(chosen) if isinstance(chosen, str) and chosen in registry.DECODERS else chosen
    return hasattr(chosen, "ordered") and _reordered(model.config.attention, chosen)


def _decoder(model, process: Process, options: Options, numbers: Mapping[str, Any], usual: Usual):
    chosen = usual.decoder if options.decoder is None else options.decoder
    if isinstance(chosen, type):
        raise ConfigError(f"decoder={chosen.__name__}: is a class; give an object of it, as in "
                          f"{chosen.__name__}(mask_id={process.mask_id})")
    if not isinstance(chosen, (str, Decoder)):
        raise ConfigError(f"decoder={chosen!r}: must be a name, one of {', '.join(registry.DECODERS)}, or a decoder")
    if options.twin is not None and chosen != "copula":
        raise ConfigError(f"twin: is read by the decoder copula alone, and decoder={chosen!r}; leave it out")
    if not isinstance(chosen, str):
        if numbers:
            name = next(iter(numbers))
            raise ConfigError(f"{name}={numbers[name]!r}: {_unknown(name, ())}; a decoder that is given as an object "
                              "has its numbers already, so leave it out")
        own.check(chosen)
        if chosen.mask_id != process.mask_id:
            raise ConfigError(f"decoder: {type(chosen).__name__} writes over the mask {chosen.mask_id}, and the model "
                              f"has {process.mask_id}; make it with mask_id={process.mask_id}")
        return chosen
    known = registry.entries()[chosen].numbers if chosen in registry.DECODERS else ()
    for name in numbers:
        if chosen in registry.DECODERS and name not in known:
            raise ConfigError(f"{name}={numbers[name]!r}: {_unknown(name, known)}; the decoder {chosen} has "
                              f"{', '.join(known)}")
    try:
        if model.schedule is not None and chosen == "ancestral":
            return LearnedScheduleAncestral(process, **registry.check(chosen, dict(numbers)))
        return registry.make(chosen, process=process, numbers=dict(numbers), joint=model.joint,
                             quality=model.quality, circuit=model.circuit, fused=model.fused,
                             twin=_twin(model, process, options.twin), causal=LeftReading(model.params, model.config),
                             embedding=model.params["embedding"],
                             delete_id=model.description.delete_id, insert_id=model.description.insert_id)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _twin(model, process: Process, twin) -> Twin | None:
    """What the decoder takes of an autoregressive `LanguageModel`.

    Raises:
      ConfigError: another kind of model or of run, another tokenizer, another mesh.
    """
    if twin is None:
        return None
    if not hasattr(twin, "description"):
        how = f"mdlm_jax.load({str(twin)!r})" if isinstance(twin, (str, Path)) else "what mdlm_jax.load gives"
        raise ConfigError(f"twin={twin!r}: must be a language model; give {how}")
    if twin.description.family:
        raise ConfigError(f"twin: is a published {twin.description.family}, of which nothing tells what stands "
                          "before a row; give a run of train.objective=autoregressive")
    own, other = model.tokenizer, twin.tokenizer
    same = own is other if own is None or other is None else own.same_as(other)
    if not same or twin.description.mask_id != process.mask_id or process.mask_id >= twin.config.vocab_size:
        raise ConfigError("twin: has another tokenizer than the model; give one that was trained on the same ids")
    if model.mesh != twin.mesh:
        raise ConfigError(f"twin: lies on the mesh {twin.mesh}, and the model on {model.mesh}; load both on one")
    try:
        return Twin(twin.params, twin.config, process.mask_id)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _unknown(name: str, numbers) -> str:
    if name == "num":
        return "there is no such option; answer has it, or give the prompt as often"
    known = [*(field.name for field in dataclasses.fields(Options)), "new_tokens", *numbers]
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no such option; did you mean {close[0]}?" if close else "there is no such option"


def _bias(options: Options, columns: int, process: Process, beyond: Sequence[int] = ()) -> jax.Array | None:
    """Of the ids, and where columns ``beyond`` them are read, of all up to these: -inf for those between."""
    read = 1 + max(beyond, default=columns - 1)
    if not options.bias and not len(options.suppress) and read == columns + len(beyond):
        return None
    bias = np.zeros(columns, np.float32)
    for token, nats in (options.bias or {}).items():
        bias[token] = nats
    bias[list(options.suppress)] = -np.inf
    left = np.delete(bias, process.mask_id) if process.mask_id < columns else bias
    if np.isnan(bias).any() or np.isposinf(bias).any() or not np.isfinite(left).any():
        raise ConfigError("bias, suppress: must leave an id to be written, and be numbers below infinity")
    bias = np.append(bias, np.full(read - columns, -np.inf, np.float32))
    bias[list(beyond)] = 0.0
    return jnp.asarray(bias)


def is_number(value) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_whole(value) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
