"""Reading a ``config.json`` field by field, and the rotary fields as transformers 4 and 5 write them."""

import math
import re
import warnings
from typing import Any

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import RopeConfig

_MISSING = object()
# Fields that change no number of a forward pass: bookkeeping, initialisation, dropout (all published models run
# without), and the generation defaults that transformers 4 wrote into every config.json.
_BOOKKEEPING = frozenset(
    "_name_or_path architectures auto_map model_type transformers_version dtype torch_dtype use_cache return_dict "
    "initializer_range init_device init_fn init_std init_cutoff_factor precision flash_attention "
    "attention_dropout embedding_dropout residual_dropout output_dropout hidden_dropout max_window_layers "
    "pretraining_tp task_specific_params bos_token_id eos_token_id pad_token_id mask_token_id "
    "output_router_logits router_aux_loss_coef tokenizer_class unsloth_version is_decoder temperature top_k top_p "
    "num_return_sequences use_bfloat16 output_attentions output_hidden_states chunk_size_feed_forward id2label "
    "label2id problem_type max_position_embeddings attn_implementation _attn_implementation_autoset "
    "is_llama_config".split()
)
# Fields that say which expert a token visits: an unknown one changes the network, so it is no matter for a warning.
_ROUTING = re.compile(r"rout|expert|moe|gate|top_?k|n_group|score_func|mlp_only|sparse")
_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


class Fields:
    """A ``config.json`` being read. Every field is asked for by name; the ones nobody asked for are warned about."""

    def __init__(self, raw: dict[str, Any], where: str = "config.json"):
        self._raw, self.where = raw, where
        self._seen: set[str] = set()

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The field; a missing one or null is ``default``, and an error where there is none."""
        self._seen.add(name)
        value = self._raw.get(name)
        if value is None and default is _MISSING:
            raise ConfigError(f"{self.where}: has no {name}; it is needed to build the network")
        return default if value is None else value

    def whole(self, name: str, default: Any = _MISSING) -> int | Any:
        """A field that must be an integer, or what it is without one."""
        value = self.take(name, default)
        if value is None or value is default:
            return value
        self._expect(_is_number(value) and value == int(value), name, value, "a whole number")
        return int(value)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A field that must be a finite number."""
        value = self.take(name, default)
        self._expect(_is_number(value), name, value, "a number")
        return float(value)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """A field that must be true or false."""
        value = self.take(name, default)
        self._expect(isinstance(value, bool), name, value, "true or false")
        return value

    def ours(self, **kinds: type) -> dict[str, Any]:
        """The section ``mdlm_jax``, which says what the format has no field for: those of ``kinds`` that are there."""
        section = self.take("mdlm_jax", {})
        self._expect(isinstance(section, dict), "mdlm_jax", section, "an object")
        for name, value in section.items():
            if name not in kinds:
                raise ConfigError(f"{self.where}: mdlm_jax.{name} is not known here; update mdlm_jax")
            self._expect(type(value) is kinds[name], f"mdlm_jax.{name}", value, f"of type {kinds[name].__name__}")
        return section

    def _expect(self, fits: bool, name: str, value: Any, what: str) -> None:
        if not fits:
            raise ConfigError(f"{self.where}: {name}={value!r} must be {what}")

    def require(self, name: str, *allowed: Any) -> None:
        """A field that may be missing or null, and else must have one of these values: we compute nothing else."""
        self._seen.add(name)
        value = self._raw.get(name)
        fits = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
        if value is not None and not fits:
            raise ConfigError(
                f"{self.where}: {name}={value!r} is not supported; it must be "
                f"{' or '.join(map(repr, allowed)) or 'null'}"
            )

    def one_id(self, name: str) -> int | None:
        """A token id; of several (Llama 3 lists its end tokens) the first."""
        value = self.take(name, None)
        first = (value[0] if value else None) if isinstance(value, list) else value
        self._expect(first is None or type(first) is int, name, value, "a token id, or a list of them")
        return first

    def ids(self) -> dict[str, int | None]:
        """mask_id, bos_id, eos_id, pad_id."""
        return {f"{name}_id": self.one_id(f"{name}_token_id") for name in ("mask", "bos", "eos", "pad")}

    def stored_dtype(self) -> str:
        """transformers 5 writes ``dtype``, older ones ``torch_dtype``."""
        return self.take("dtype", None) or self.take("torch_dtype", "")

    def rope(self, max_length: int, fraction: float = 1.0) -> RopeConfig:
        """``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``."""
        self.require("rope_interleaved", False)  # transformers ignores it: true would be two networks in one file
        field = "rope_parameters" if self.take("rope_parameters", None) else "rope_scaling"
        given = self.take(field, None) or {}
        self.take("rope_scaling", None)
        self._expect(isinstance(given, dict), field, given, "an object")
        inner = Fields({name: value for name, value in given.items() if value is not None}, f"{self.where}: {field}")
        theta = inner.number("rope_theta", self.number("rope_theta", 10000.0))
        share = inner.number("partial_rotary_factor", self.number("partial_rotary_factor", fraction))
        return _rope(inner, theta, share, max_length)

    def rest(self) -> dict[str, Any]:
        """What nobody asked for, nulls left out."""
        return {name: value for name, value in self._raw.items() if name not in self._seen and value is not None}

    def finish(self) -> None:
        """Warns once about fields that no rule knows: they may, or may not, change what the network computes.

        Raises:
          ConfigError: one of them speaks of routing, or is the section ``mdlm_jax`` where the family has none.
        """
        if self._raw.get("quantization_config"):
            raise ConfigError(f"{self.where}: quantization_config: quantised weights are not read here; use the "
                              "checkpoint they were made from")
        unknown = sorted(self.rest().keys() - _BOOKKEEPING)
        for name in unknown:
            if self._raw[name] and (name == "mdlm_jax" or _ROUTING.search(name)):
                raise ConfigError(f"{self.where}: {name}={self._raw[name]!r} is not known here and would change the "
                                  "network; remove it if it does not, or update mdlm_jax")
        if unknown:
            warnings.warn(f"{self.where}: fields that are not known here, and not obeyed: {', '.join(unknown)}",
                          stacklevel=3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rope(given: Fields, theta: float, fraction: float, max_length: int) -> RopeConfig:
    spelling = given.take("type", "default")
    kind = given.take("rope_type", spelling)
    given.require("rope_type" if given.take("rope_type", None) else "type", *_SCALINGS)
    numbers: dict[str, Any] = {}
    if kind == "default":
        given.require("factor", 1)
    else:
        numbers["factor"] = given.number("factor")
    if kind in ("llama3", "yarn"):
        low, high = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
        defaults = (1.0, 4.0) if kind == "llama3" else (1.0, 32.0)
        numbers |= {
            "original_length": given.whole("original_max_position_embeddings", max_length),
            "low_frequency": given.number(low, defaults[0]),
            "high_frequency": given.number(high, defaults[1]),
        }
    if kind == "yarn":
        numbers["attention_factor"] = given.number("attention_factor", 0.0)
    given.take("finetuned", None)
    for name, value in sorted(given.rest().items()):
        raise ConfigError(f"{given.where}.{name}={value!r} is not supported with rope_type={kind}; remove it")
    return RopeConfig(theta=theta, fraction=fraction, scaling=_SCALINGS[kind], **numbers)


def rope_fields(rope: RopeConfig, modern: bool = True) -> dict:
    """The fields that say ``rope``: both spellings, so that transformers 4 and 5 and published model code read them.

    Args:
      modern: also write ``rope_parameters``; code that predates it does not expect it.
    """
    scaling: dict[str, Any] = {"rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if rope.scaling != "none":
        scaling["factor"] = rope.factor
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        scaling |= {"beta_slow": rope.low_frequency, "beta_fast": rope.high_frequency}
        scaling |= {"attention_factor": rope.attention_factor} if rope.attention_factor else {}
    if rope.scaling in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_length
    fields = {"rope_theta": rope.theta, "rope_scaling": None if rope.scaling == "none" else scaling}
    return fields | ({"rope_parameters": scaling | {"rope_theta": rope.theta}} if modern else {})


def id_fields(description) -> dict[str, int]:
    """``mask_token_id`` and its like, where they are known."""
    ids = {"mask": description.mask_id, "bos": description.bos_id, "eos": description.eos_id, "pad": description.pad_id}
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}
