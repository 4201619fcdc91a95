"""Reading a ``config.json`` field by field, and the rotary fields as transformers 4 and 5 write them."""

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
    "label2id problem_type mdlm_jax max_position_embeddings attn_implementation _attn_implementation_autoset "
    "is_llama_config rope_interleaved".split()
)
_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


class Fields:
    """A ``config.json`` being read. Every field is asked for by name; the ones nobody asked for are warned about."""

    def __init__(self, raw: dict, where: str = "config.json"):
        self._raw, self._where, self._seen = raw, where, set()

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The field; a missing one or null is ``default``, and an error where there is none."""
        self._seen.add(name)
        value = self._raw.get(name)
        if value is None and default is _MISSING:
            raise ConfigError(f"{self._where}: has no {name}; it is needed to build the network")
        return default if value is None else value

    def whole(self, name: str, default: Any = _MISSING) -> int:
        """A field that must be an integer."""
        value = self.take(name, default)
        if value is not None and (isinstance(value, bool) or value != int(value)):
            raise ConfigError(f"{self._where}: {name}={value!r} must be a whole number")
        return value if value is None else int(value)

    def require(self, name: str, *allowed: Any) -> None:
        """A field that may be missing or null, and else must have one of these values: we compute nothing else."""
        self._seen.add(name)
        value = self._raw.get(name)
        fits = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
        if value is not None and not fits:
            raise ConfigError(
                f"{self._where}: {name}={value!r} is not supported; only {' or '.join(map(repr, allowed)) or 'null'} is"
            )

    def one_id(self, name: str) -> int | None:
        """A token id; of several (Llama 3 lists its end tokens) the first."""
        value = self.take(name, None)
        return value[0] if isinstance(value, list) else value

    def ids(self) -> dict[str, int | None]:
        """mask_id, bos_id, eos_id, pad_id."""
        return {f"{name}_id": self.one_id(f"{name}_token_id") for name in ("mask", "bos", "eos", "pad")}

    def stored_dtype(self) -> str:
        """transformers 5 writes ``dtype``, older ones ``torch_dtype``."""
        return self.take("dtype", None) or self.take("torch_dtype", "")

    def rope(self, max_length: int, fraction: float = 1.0) -> RopeConfig:
        """``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``."""
        new = self.take("rope_parameters", None)
        old = self.take("rope_scaling", None)
        scaling = dict(new or old or {})
        theta = scaling.pop("rope_theta", None) or self.take("rope_theta", 10000.0)
        self._seen |= {"rope_theta", "partial_rotary_factor"}
        fraction = scaling.pop("partial_rotary_factor", None) or self._raw.get("partial_rotary_factor") or fraction
        return _rope(self._where, "rope_parameters" if new else "rope_scaling", scaling, theta, fraction, max_length)

    def finish(self) -> None:
        """Warns once about fields that no rule knows: they may, or may not, change what the network computes."""
        unknown = sorted(set(self._raw) - self._seen - _BOOKKEEPING)
        if unknown:
            warnings.warn(f"{self._where}: fields that are not known here, and not obeyed: {', '.join(unknown)}",
                          stacklevel=3)


def _rope(where: str, field: str, given: dict, theta: float, fraction: float, max_length: int) -> RopeConfig:
    given = dict(given)
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind not in _SCALINGS:
        raise ConfigError(f"{where}: {field}.rope_type={kind!r} is not supported; {', '.join(_SCALINGS)} are")
    numbers: dict[str, Any] = {}
    if kind != "default":
        numbers["factor"] = float(given.pop("factor"))
    if kind in ("llama3", "yarn"):
        length = given.pop("original_max_position_embeddings", None) or max_length
        low, high = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
        defaults = (1.0, 4.0) if kind == "llama3" else (1.0, 32.0)
        numbers |= {
            "original_length": int(length),
            "low_frequency": float(given.pop(low, None) or defaults[0]),
            "high_frequency": float(given.pop(high, None) or defaults[1]),
        }
    if kind == "yarn":
        numbers["attention_factor"] = float(given.pop("attention_factor", None) or 0.0)
    rest = {name: value for name, value in given.items() if value is not None and name != "finetuned"}
    if rest and kind != "default":
        raise ConfigError(f"{where}: {field}.{min(rest)}={rest[min(rest)]!r} is not supported with rope_type={kind}")
    return RopeConfig(theta=float(theta), fraction=float(fraction), scaling=_SCALINGS[kind], **numbers)


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
